"""How Slurm's programs are called, and how their answers are interpreted. Real ones are used in tests/slurm_lab."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacking.errors import StackingError, Unreachable, UserError
from stacking.launch import slurm_client
from tests.slurm.fake_slurm import FakeSlurm

SCRIPT, FOLDER = Path("/run/slurm/0-L3.sbatch"), Path("/run")


def test_a_job_is_submitted_on_hold_in_its_folder_and_after_another(slurm: FakeSlurm) -> None:
    slurm.answers("sbatch", stdout="sbatch: warning of the site\n4711;cluster\n")
    assert slurm_client.submit(SCRIPT, FOLDER, after="afterok:4710") == 4711
    options = ["--parsable", "--hold", "--chdir=/run", "--dependency=afterok:4710"]
    assert slurm.calls() == [["sbatch", *options, "/run/slurm/0-L3.sbatch"]]


def test_a_refusal_by_slurm_is_reported_in_one_line_with_its_message(slurm: FakeSlurm) -> None:
    words = "sbatch: error: invalid account\nsbatch: error: Batch job submission failed: Invalid account\n"
    slurm.answers("sbatch", stderr=words, code=1)
    with pytest.raises(UserError) as caught:
        slurm_client.submit(SCRIPT, FOLDER)
    assert str(caught.value).startswith(f"{SCRIPT}: sbatch says: invalid account; Batch job submission failed: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", ["Unable to contact slurm controller (connect failure)", "Socket timed out on send"])
def test_an_unreachable_slurm_is_not_a_user_error(slurm: FakeSlurm, words: str) -> None:
    slurm.answers("sbatch", stderr=f"sbatch: error: {words}\n", code=1)
    with pytest.raises(StackingError, match=r"^sbatch: ") as caught:
        slurm_client.submit(SCRIPT, FOLDER)
    assert caught.value.exit_code == 1


def test_an_answer_without_a_number_is_shown(slurm: FakeSlurm) -> None:
    slurm.answers("sbatch", stdout="Thank you for your job!\n")
    with pytest.raises(StackingError, match="answered 'Thank you for your job!' where the id of a job was expected"):
        slurm_client.submit(SCRIPT, FOLDER)


@pytest.mark.parametrize(
    ("partition", "hours"), [(None, 0.5), ("debug", 0.5), ("gpu", 49.0), ("long", None), ("no", None)]
)
def test_a_job_without_a_time_limit_gets_that_of_its_partition(
    slurm: FakeSlurm, partition: str | None, hours: float | None
) -> None:
    slurm.answers("sinfo", stdout="debug*|30:00|1:00:00\ngpu|n/a|2-01:00:00\nlong|n/a|infinite\n")
    assert slurm_client.default_hours(partition) == hours


def test_an_unanswered_query_is_retried(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Exception | int] = [Unreachable("away"), Unreachable("away"), 7]

    def ask() -> int:
        if isinstance(answer := answers.pop(0), Exception):
            raise answer
        return answer

    monkeypatch.setattr(slurm_client, "_PAUSES", (0.0,))
    assert slurm_client.patiently(ask, patience=60) == 7
    answers += [Unreachable("away"), Unreachable("still away")]
    with pytest.raises(Unreachable):
        slurm_client.patiently(ask, patience=-1)


def test_a_machine_without_slurm_is_named(slurm: FakeSlurm) -> None:
    for attempt in (slurm_client.require, lambda: slurm_client.submit(SCRIPT, FOLDER)):
        with pytest.raises(UserError, match=r"^sbatch: is not on this machine"):
            attempt()


def test_jobs_that_left_the_queue_are_looked_up_in_accounting(slurm: FakeSlurm) -> None:
    slurm.answers("squeue", stdout="12|PENDING|gpu||0:00|2026-01-02T03:04:05|Resources|b|/a|b\n")
    slurm.answers("sacct", stdout="11|CANCELLED by 1000|gpu|n[1-2]|00:10:00|2026-01-01T00:00:00|None|a|/a|b\n")
    found = slurm_client.jobs([11, 12])
    assert (found[11].state, found[11].is_live, found[11].nodes, found[11].reason) == (
        "CANCELLED",
        False,
        "n[1-2]",
        None,
    )
    assert (found[12].state, found[12].is_live, found[12].nodes, found[12].reason) == ("PENDING", True, "", "Resources")
    assert found[12].start == "2026-01-02T03:04:05" and found[12].folder == Path("/a|b")
    assert slurm.calls()[1][-1] == "11"


def test_without_accounting_jobs_that_left_the_queue_are_unknown(slurm: FakeSlurm) -> None:
    slurm.answers("squeue", stderr="slurm_load_jobs error: Invalid job id specified\n", code=1)
    slurm.answers("sacct", stderr="Slurm accounting storage is disabled\n", code=1)
    assert slurm_client.jobs([11]) == {}


def test_an_unreachable_queue_is_not_taken_for_an_empty_one(slurm: FakeSlurm) -> None:
    slurm.answers("squeue", stderr="slurm_load_jobs error: Unable to contact slurm controller\n", code=1)
    with pytest.raises(StackingError):
        slurm_client.jobs([11])


def test_no_query_is_made_without_jobs(slurm: FakeSlurm) -> None:
    assert slurm_client.jobs([]) == {}
    slurm_client.cancel([])
    slurm_client.release([])
    assert slurm.calls() == []


def test_only_live_jobs_with_that_working_folder_are_found(slurm: FakeSlurm) -> None:
    lines = [
        "1|RUNNING|gpu|n1|0:01|N/A|None|a|/run",
        "2|PENDING|gpu||0:00|N/A|JobHeldUser|b|/run",
        "3|COMPLETED|gpu|n1|0:01|N/A|None|c|/run",
        "4|RUNNING|gpu|n1|0:01|N/A|None|d|/other",
    ]
    slurm.answers("squeue", stdout="".join(f"{line}\n" for line in lines))
    assert list(slurm_client.jobs_in(FOLDER)) == [1, 2]


@pytest.mark.parametrize(
    ("version", "can"), [("slurm-wlm 22.05.8", True), ("slurm 20.11.0", True), ("slurm 20.02.7", False), ("?", False)]
)
def test_steps_overlap_where_srun_has_the_option(slurm: FakeSlurm, version: str, can: bool) -> None:
    slurm.answers("srun", stdout=f"{version}\n")
    assert slurm_client.steps_can_overlap() == can


def test_steps_of_a_slurm_that_does_not_answer_stay_apart(slurm: FakeSlurm) -> None:
    slurm.answers("srun", stderr="srun: fatal: Could not establish a configuration source", code=1)
    assert not slurm_client.steps_can_overlap()


def test_commands_that_change_jobs_get_their_ids(slurm: FakeSlurm) -> None:
    for program in ("scancel", "scontrol"):
        slurm.answers(program)
    slurm_client.cancel([3, 2])
    slurm_client.release([2, 3])
    slurm_client.requeue(3)
    assert slurm.calls() == [
        ["scancel", "--quiet", "3", "2"],
        ["scontrol", "release", "2,3"],
        ["scontrol", "requeue", "3"],
    ]


def test_the_environment_of_a_surrounding_job_does_not_reach_a_new_one() -> None:
    foreign = "SLURM_JOB_ID SLURM_MEM_PER_CPU SBATCH_PARTITION SQUEUE_FORMAT PMI_RANK PMIX_RANK OMPI_COMM_WORLD_SIZE"
    kept = {"SLURM_CONF": "/c", "SLURM_CLUSTERS": "c2", "PATH": "/bin"}
    assert slurm_client._environment(kept | dict.fromkeys(foreign.split(), "1")) == kept


def test_a_cluster_header_is_not_taken_for_a_job(slurm: FakeSlurm) -> None:
    slurm.answers("squeue", stdout="CLUSTER: c2\n11|RUNNING|gpu|n1|0:01|N/A|None|a|/run\n")
    assert list(slurm_client.jobs([11])) == [11]
