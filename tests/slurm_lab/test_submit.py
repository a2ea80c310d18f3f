"""`stacking submit` on a real SLURM: chains, their dependencies, and submitting again. No training here."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chain import write_recipe
from tests.slurm_lab.lab import Lab
from tests.slurm_lab.submitted import Submitted

pytestmark = pytest.mark.slurm

CHAIN = ["0-L1", "0-L1-to-1-L2", "1-L2", "finish"]
JOBS = [*CHAIN, "watch"]
PHASES = ["train:0", "consolidate:0", "grow:1", "train:1", "consolidate:1", "export:1", "report:1"]


def recipe(folder: Path, data: Path) -> Path:
    """Two stages are enough for a chain."""
    first = {"layers": 1, "steps": 6, "batch_sequences": 8, "micro_batch": 2, "learning_rate": {"peak": 1e-3}}
    return write_recipe(folder, data, stages=[first, {"layers": 2, "steps": 6}])


def stub(folder: Path) -> Path:
    """An interpreter that runs the stub in place of the controller."""
    path = folder / "stub"
    path.write_text(
        f'#!/bin/sh\ncase "$2" in stacking.slurm.*) exec {sys.executable} "$@";; esac\n'
        f'exec {sys.executable} -m tests.slurm_lab.stub_controller "$@"\n'
    )
    path.chmod(0o755)
    return path


def real_submit(folder: Path) -> Path:
    """An interpreter that runs the stub in place of the controller, and everything else unchanged."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\ncase "$3" in resume) exec {stub(folder)} "$@";; esac\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path


def killed(folder: Path) -> Path:
    """An interpreter that is killed immediately."""
    path = folder / "killed"
    path.write_text("#!/bin/sh\nkill -9 $$\n")
    path.chmod(0o755)
    return path


def script(chain: Submitted, **acts: str) -> None:
    """Say what happens to a job: ``fail``, ``wait`` or ``requeue``."""
    names = {"train0": "train:0", "between": "consolidate:0,grow:1", "train1": "train:1"}
    (chain.run.parent / "script.json").write_text(json.dumps({names[name]: act for name, act in acts.items()}))


def log(chain: Submitted, name: str) -> str:
    return (chain.run / "slurm" / f"{name}.{chain.jobs()[name]}.log").read_text()


def kill_shell(chain: Submitted) -> None:
    """Kill the batch shell and the controller of the newest stage, as the kernel does when it runs out of memory."""
    already = len(chain.events("failed"))
    chain.lab.wait_until(lambda: len(chain.events("started")) > already)
    controller = chain.events("started")[-1]["pid"]
    shell = int(Path(f"/proc/{controller}/stat").read_text().rpartition(")")[2].split()[1])
    for process in (shell, controller):
        os.kill(process, signal.SIGKILL)


@pytest.fixture
def chain(lab: Lab, tmp_path: Path, data: Path) -> Submitted:
    return Submitted(lab, tmp_path, recipe(tmp_path, data), python=stub(tmp_path))


def test_a_chain_runs_every_phase_once_and_in_order(chain: Submitted) -> None:
    answer = chain.submit().stdout.splitlines()
    assert [line.split()[0] for line in answer[:-1]] == JOBS
    chain.lab.wait_for(chain.jobs()["finish"], "COMPLETED")
    assert chain.finished() == PHASES
    assert chain.status()["state"] == "finished"
    assert {job["state"] for job in chain.status()["jobs"]} == {"COMPLETED"}
    logs = sorted(path.name for path in (chain.run / "slurm").glob("*.log"))
    assert logs == sorted(f"{name}.{job}.log" for name, job in chain.jobs().items() if name != "watch")
    chain.lab.wait_until(lambda: chain.lab.run("squeue", "-h").strip() == "")


def test_one_allocation_is_one_job(chain: Submitted) -> None:
    chain.submit("--mode", "one-allocation")
    job = chain.lab.wait_for(chain.jobs()["run"], "COMPLETED")
    assert job["NumNodes"] == "2"
    assert chain.finished() == PHASES


def test_a_failed_stage_never_starts_its_successor_and_submitting_again_resumes(chain: Submitted) -> None:
    script(chain, train1="fail")
    chain.submit()
    first = chain.jobs()
    chain.lab.wait_for(first["1-L2"], "FAILED")
    chain.lab.wait_until(lambda: chain.lab.state(first["finish"]) == "CANCELLED")
    assert chain.finished() == PHASES[:3]
    chain.lab.wait_for(first["watch"], "COMPLETED")
    assert log(chain, "watch") == f"stacking: job {first['1-L2']} (1-L2) ended as FAILED, which is not mended\n"
    status = chain.status()
    assert (status["state"], status["last_error"]) == ("failed", "as it was told")
    assert f"stacking submit --resume {shlex.quote(str(chain.run))}" in chain.stacking("status", chain.run).stdout

    script(chain)
    answer = chain.resume().stdout.splitlines()
    assert [line.split()[0] for line in answer[:-1]] == JOBS[2:]
    chain.lab.wait_for(chain.jobs()["finish"], "COMPLETED")
    assert chain.finished() == PHASES


def test_a_requeued_stage_keeps_its_job_and_the_chain_recovers_by_itself(chain: Submitted) -> None:
    script(chain, train0="requeue", between="requeue")
    chain.submit()
    chain.lab.wait_for(chain.jobs()["finish"], "COMPLETED")
    assert chain.finished() == PHASES
    assert [chain.lab.job(chain.jobs()[name])["Restarts"] for name in CHAIN[:3]] == ["1", "1", "0"]
    assert len(chain.events("submitted")) == len(JOBS)


def test_a_killed_controller_does_not_stall_the_chain(chain: Submitted) -> None:
    script(chain, train0="kill")
    chain.submit()
    chain.lab.wait_for(chain.jobs()["finish"], "COMPLETED")
    assert chain.finished() == PHASES
    assert [chain.lab.job(chain.jobs()[name])["Restarts"] for name in CHAIN[:2]] == ["1", "0"]
    (log,) = (chain.run / "slurm").glob("0-L1.*.log")
    assert "the controller was killed by signal 9; requeueing job" in log.read_text()


def test_a_killed_check_does_not_stop_the_chain(lab: Lab, tmp_path: Path, data: Path) -> None:
    dies = tmp_path / "dies"
    dies.write_text(f'#!/bin/sh\n[ "$3" != doctor ] || kill -9 $$\nexec {stub(tmp_path)} "$@"\n')
    dies.chmod(0o755)
    chain = Submitted(lab, tmp_path, recipe(tmp_path, data), python=dies, doctor=True)
    chain.submit()
    lab.wait_for(chain.jobs()["0-L1"], "COMPLETED")


def test_a_controller_that_is_always_killed_ends_the_chain(lab: Lab, tmp_path: Path, data: Path) -> None:
    chain = Submitted(lab, tmp_path, recipe(tmp_path, data), python=killed(tmp_path), mends=1)
    chain.submit()
    lab.wait_for(chain.jobs()["0-L1"], "FAILED")
    assert lab.job(chain.jobs()["0-L1"])["Restarts"] == "1"


def test_a_killed_batch_shell_does_not_stall_the_chain(chain: Submitted) -> None:
    """SLURM sees a failed job, as after running out of memory, and cancels those after it."""
    script(chain, train0="wait")
    chain.submit()
    first = chain.jobs()
    kill_shell(chain)
    chain.lab.wait_until(lambda: len(chain.events("submitted")) == 2 * len(JOBS))
    (chain.run.parent / "go").touch()
    second = chain.jobs()
    chain.lab.wait_for(second["finish"], "COMPLETED")
    assert chain.finished() == PHASES
    ends = {name: chain.lab.state(job) for name, job in first.items()}
    assert ends == dict.fromkeys(CHAIN, "CANCELLED") | {"0-L1": "FAILED", "watch": "COMPLETED"}
    (failed,) = chain.events("failed")
    lost = f"job {first['0-L1']} (0-L1) ended as FAILED, and its script was killed"
    assert failed["message"] == f"{lost}; the rest of the chain is submitted again"
    chain.lab.wait_until(lambda: chain.lab.run("squeue", "-h").strip() == "")
    assert set(second.values()) == {event["job"] for event in chain.events("submitted")[len(JOBS) :]}


def test_a_shell_that_is_killed_repeatedly_ends_the_chain(lab: Lab, tmp_path: Path, data: Path) -> None:
    chain = Submitted(lab, tmp_path, recipe(tmp_path, data), python=stub(tmp_path), mends=1)
    script(chain, train0="wait")
    chain.submit()
    kill_shell(chain)
    lab.wait_until(lambda: len(chain.events("submitted")) == 2 * len(JOBS))
    kill_shell(chain)
    lab.wait_until(lambda: lab.run("squeue", "-h").strip() == "")
    status = chain.status()
    assert (
        status["state"] == "failed" and "its script was killed; already started again 1 times" in status["last_error"]
    )
    assert len(chain.events("submitted")) == 2 * len(JOBS)


def test_without_mends_there_is_no_watcher(lab: Lab, tmp_path: Path, data: Path) -> None:
    chain = Submitted(lab, tmp_path, recipe(tmp_path, data), python=stub(tmp_path), mends=0)
    script(chain, train0="wait")
    chain.submit()
    assert list(chain.jobs()) == CHAIN
    kill_shell(chain)
    lab.wait_until(lambda: lab.run("squeue", "-h").strip() == "")
    assert chain.status()["state"] == "stopped"


@pytest.mark.parametrize("name", ["USR1", "TERM"])
def test_a_signal_before_the_controller_is_ready_is_reported(lab: Lab, tmp_path: Path, data: Path, name: str) -> None:
    """The interpreter takes a while to start, as on a slow file server, and dies of the signal until then."""
    slow = tmp_path / "slow"
    first = f"mkdir {tmp_path}/started 2>/dev/null && exec sleep 60"
    slow.write_text(f'#!/bin/sh\n{first}\nexec {stub(tmp_path)} "$@"\n')
    slow.chmod(0o755)
    chain = Submitted(lab, tmp_path, recipe(tmp_path, data), python=slow)
    chain.submit()
    job = chain.jobs()["0-L1"]
    lab.wait_until((tmp_path / "started").exists)
    lab.run("scancel", "--batch", f"--signal={name}", str(job))
    lab.wait_for(job, "COMPLETED")
    assert lab.job(job)["Restarts"] == "1"
    line = f"stacking: SIG{name} came before the controller was ready; job {job} is requeued and will start again"
    assert line in log(chain, "0-L1")
    (event,) = chain.events("preempted")
    assert (event["phase"], event["message"]) == ("train", f"stopped by SIG{name} before the controller was ready")


def test_without_requeue_a_stopped_stage_submits_the_rest_of_the_chain_again(
    lab: Lab, tmp_path: Path, data: Path
) -> None:
    chain = Submitted(lab, tmp_path, recipe(tmp_path, data), python=real_submit(tmp_path), requeue=False)
    script(chain, train0="wait")
    chain.submit()
    first = chain.jobs()
    lab.wait_until(lambda: chain.events("started") != [])
    (tmp_path / "script.json").unlink()
    lab.run("scancel", "--batch", "--signal=USR1", str(first["0-L1"]))
    lab.wait_until(lambda: len(chain.events("submitted")) == 2 * len(JOBS))
    second = chain.jobs()
    lab.wait_for(second["finish"], "COMPLETED")
    assert chain.finished() == PHASES
    assert (lab.state(first["0-L1"]), lab.job(first["0-L1"])["Requeue"]) == ("COMPLETED", "0")
    assert {lab.state(first[name]) for name in CHAIN[1:]} == {"CANCELLED"}
    assert chain.events("submitted")[len(JOBS)]["after"] == f"afterany:{first['0-L1']}"


def test_more_cores_than_a_node_has_are_refused(lab: Lab, tmp_path: Path, data: Path) -> None:
    chain = Submitted(lab, tmp_path, recipe(tmp_path, data), python=stub(tmp_path), transition={"cores": 999})
    refused = chain.submit(check=False)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert f"{chain.site}: transition: job 0-L1-to-1-L2: sbatch says: " in refused.stderr
    assert not chain.run.exists()


def test_waiting_jobs_follow_a_changed_site_file(chain: Submitted) -> None:
    script(chain, train0="wait")
    chain.submit()
    before = chain.jobs()
    chain.lab.wait_for(before["0-L1"], "RUNNING")
    chain.site.write_text(chain.site.read_text() + "hours: 2\n")
    answer = chain.submit().stdout
    assert "0-L1               job" in answer and "already queued" in answer
    after = chain.jobs()
    assert after["0-L1"] == before["0-L1"] and after["1-L2"] != before["1-L2"]
    assert chain.lab.state(before["1-L2"]) == "CANCELLED"
    (chain.run.parent / "go").touch()
    chain.lab.wait_for(after["finish"], "COMPLETED")


def test_resources_of_a_run_are_changed_by_resuming_it(chain: Submitted) -> None:
    script(chain, train0="wait")
    chain.submit()
    before = chain.jobs()
    chain.lab.wait_for(before["0-L1"], "RUNNING")
    chain.lab.wait_until(lambda: chain.events("started") != [])
    change = ["--set", "stages[1].resources.partition=high", "--set", "launch.resources.hours=1"]
    answer = chain.resume(*change).stdout.splitlines()
    assert answer[0].endswith(f"job {before['0-L1']} already running") and "submitted after" in answer[2]
    after = chain.jobs()
    assert [chain.lab.state(before[name]) for name in CHAIN[2:]] == ["CANCELLED"] * 2
    assert [chain.lab.job(after[name])["Partition"] for name in CHAIN] == ["low", "low", "high", "low"]
    assert chain.lab.job(after["1-L2"])["TimeLimit"] == "01:00:00"
    for again in (chain.resume(), chain.submit()):  # the change is kept
        assert "nothing to submit" in again.stdout
    refused = chain.resume("--set", "stages[1].resources.partition=nowhere", check=False)
    assert refused.returncode == 2 and "stages[1].resources.partition: job 1-L2: sbatch says" in refused.stderr
    refused = chain.resume("--set", "seed=8", check=False)
    assert refused.returncode == 2 and "--set seed=8: changes the run itself" in refused.stderr
    assert chain.jobs() == after and chain.lab.state(after["1-L2"]) == "PENDING"


def test_resuming_by_hand_is_refused_while_jobs_are_live(chain: Submitted) -> None:
    script(chain, train0="wait")
    chain.submit()
    chain.lab.wait_until(lambda: chain.events("started") != [])
    refused = chain.stacking("resume", chain.run, check=False)
    quoted = shlex.quote(str(chain.run))
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert f"`stacking submit --resume {quoted}`" in refused.stderr and "--here" in refused.stderr
    here = chain.stacking("resume", chain.run, "--here", check=False)
    assert "is in use by process" in here.stderr
    again = chain.stacking("run", chain.recipe, "--run-dir", chain.run, check=False)
    assert again.returncode == 2 and ("is in use" in again.stderr or "submit --resume" in again.stderr)


def test_a_brief_slurm_outage_does_no_harm(chain: Submitted) -> None:
    script(chain, train0="wait")
    chain.submit()
    job = chain.jobs()["0-L1"]
    chain.lab.wait_until(lambda: chain.events("started") != [])
    assert chain.status()["state"] == "running"
    chain.lab.tool("kill", "slurmctld")
    try:
        now = chain.status()
        assert [j["state"] for j in now["jobs"]] == ["RUNNING", *["PENDING"] * (len(JOBS) - 1)] and now["queue_error"]
    finally:
        chain.lab.tool("revive", "slurmctld")
        chain.lab.wait_until(lambda: chain.lab.run("squeue", "-h", check=False) != "")
    (chain.run.parent / "go").touch()
    chain.lab.wait_for(job, "COMPLETED")


def test_a_different_mode_is_refused_rather_than_ignored(chain: Submitted) -> None:
    script(chain, train0="wait")
    chain.submit()
    chain.lab.wait_for(chain.jobs()["0-L1"], "RUNNING")
    refused = chain.submit("--mode", "one-allocation", check=False)
    assert refused.returncode == 2 and "has jobs in the queue that were submitted as per-stage" in refused.stderr
    (chain.run.parent / "go").touch()


def _wait_for_an_empty_queue(chain: Submitted) -> None:
    """SLURM drops the watcher of a finished chain when it next looks at the queue."""
    chain.lab.wait_until(lambda: chain.lab.run("squeue", "-h").strip() == "")


def test_a_hold_placed_by_the_user_is_kept(chain: Submitted) -> None:
    script(chain, train0="wait")
    chain.submit()
    first = chain.jobs()
    chain.lab.wait_for(first["0-L1"], "RUNNING")  # a waiting job would be replaced
    chain.lab.run("scontrol", "uhold", str(first["1-L2"]))
    assert "1-L2               job" in chain.resume().stdout
    assert (chain.jobs(), chain.lab.job(first["1-L2"])["Reason"]) == (first, "JobHeldUser")
    chain.site.write_text(chain.site.read_text() + "hours: 2\n")
    chain.submit()
    second = chain.jobs()
    assert second["1-L2"] != first["1-L2"] and second["0-L1"] == first["0-L1"]
    # SLURM gives a reason when it next looks at the queue.
    expected = dict.fromkeys(CHAIN[1:], "Dependency") | {"1-L2": "JobHeldUser"}
    chain.lab.wait_until(lambda: {name: chain.lab.job(second[name])["Reason"] for name in CHAIN[1:]} == expected)


def test_submitting_twice_never_makes_two_runs(chain: Submitted) -> None:
    script(chain, train0="wait")
    chain.submit()
    ids = chain.jobs()
    chain.lab.wait_for(ids["0-L1"], "RUNNING")
    chain.lab.wait_until(lambda: chain.events("started") != [])
    for again in (chain.submit(), chain.resume()):
        assert "nothing to submit: the whole chain is queued or running" in again.stdout
    assert len(chain.lab.run("squeue", "-h", "-o", "%A").split()) == len(JOBS)
    assert [(job["name"], job["state"]) for job in chain.status()["jobs"]][:2] == [
        ("0-L1", "RUNNING"),
        ("0-L1-to-1-L2", "PENDING"),
    ]
    chain.lab.wait_until(lambda: chain.status()["jobs"][1]["reason"] == "Dependency")
    (chain.run.parent / "go").touch()
    chain.lab.wait_for(ids["finish"], "COMPLETED")
    assert chain.finished() == PHASES
    _wait_for_an_empty_queue(chain)
    assert "is finished" in chain.submit().stdout
    assert chain.jobs() == ids


def test_concurrent_submissions_make_one_run(chain: Submitted) -> None:
    argv = [sys.executable, "-m", "stacking", "submit", chain.recipe, "--run-dir", chain.run, "--site", chain.site]
    both = [subprocess.Popen(list(map(str, argv)), env=chain.lab.environment, stderr=-1, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) in ([0, 0], [0, 2]), errors
    assert len(chain.events("created")) == 1
    assert len(chain.events("submitted")) == len(JOBS)
    chain.lab.wait_for(chain.jobs()["finish"], "COMPLETED")
    assert chain.finished() == PHASES


def test_a_different_recipe_is_not_submitted_into_a_run(chain: Submitted) -> None:
    script(chain, train0="wait")
    chain.submit()
    other = chain.submit("--set", "seed=8", check=False)
    assert other.returncode == 2 and "belongs to another recipe" in other.stderr
    assert other.stderr.count("\n") == 1


def test_a_job_cancelled_by_hand_is_submitted_again_while_an_earlier_one_is_running(chain: Submitted) -> None:
    script(chain, train0="wait")
    chain.submit()
    first = chain.jobs()
    chain.lab.wait_until(lambda: chain.events("started") != [])
    chain.lab.run("scancel", str(first["1-L2"]))
    chain.lab.wait_for(first["watch"], "COMPLETED")
    assert log(chain, "watch") == f"stacking: job {first['1-L2']} (1-L2) ended as CANCELLED, which is not mended\n"
    answer = chain.resume().stdout.splitlines()
    assert "already running" in answer[0] and answer[2].endswith(f"submitted after {first['0-L1-to-1-L2']}")
    assert [name for name in CHAIN if chain.jobs()[name] == first[name]] == CHAIN[:2]
    (chain.run.parent / "go").touch()
    chain.lab.wait_for(chain.jobs()["finish"], "COMPLETED")
    assert chain.finished() == PHASES


def test_the_other_mode_is_refused_while_jobs_are_in_the_queue(chain: Submitted) -> None:
    script(chain, train0="wait")
    chain.submit()
    chain.lab.run("scancel", str(chain.jobs()["finish"]))
    chain.lab.run("scontrol", "hold", str(chain.jobs()["0-L1"]))
    other = chain.submit("--mode", "one-allocation", check=False)
    assert other.returncode == 2 and "stacking cancel" in other.stderr, other.stderr


def test_a_refusal_by_slurm_leaves_no_partial_chain(chain: Submitted) -> None:
    refused = chain.submit("--set", "stages[1].resources.partition=nowhere", check=False)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    where = f"{chain.recipe}: stages[1].resources.partition: job 1-L2: sbatch says: invalid partition"
    assert where in refused.stderr
    assert chain.lab.run("squeue", "-h").strip() == "" and not chain.run.exists()


@pytest.mark.parametrize("moment", ["before the journal", "before the release"])
def test_a_killed_submission_starts_nothing_and_can_be_completed(chain: Submitted, moment: str) -> None:
    _submit_and_die(chain, moment)
    time.sleep(2)
    assert chain.events("started") == []
    assert set(chain.lab.run("squeue", "-h", "-o", "%r").split()) == {"JobHeldUser"}
    chain.submit()
    chain.lab.wait_for(chain.jobs()["finish"], "COMPLETED")
    assert chain.finished() == PHASES
    _wait_for_an_empty_queue(chain)


def test_outputs_missing_on_disk_are_submitted_again_whatever_the_journal_says(chain: Submitted) -> None:
    chain.submit()
    chain.lab.wait_for(chain.jobs()["finish"], "COMPLETED")
    _wait_for_an_empty_queue(chain)
    for name in ("0-L1/state", "1-L2/start", "1-L2/checkpoints", "1-L2/state", "export"):
        subprocess.run(["rm", "-r", str(chain.run / name)], check=True)
    (chain.run / "report.html").unlink()
    answer = chain.submit().stdout.splitlines()
    assert [line.split()[0] for line in answer[:-1]] == JOBS[1:]
    chain.lab.wait_for(chain.jobs()["finish"], "COMPLETED")


def test_cancelling_ends_all_jobs_and_nothing_starts_meanwhile(chain: Submitted) -> None:
    script(chain, train0="wait")
    chain.submit()
    chain.lab.wait_until(lambda: chain.events("started") != [])
    chain.stacking("cancel", chain.run)
    assert chain.lab.run("squeue", "-h").strip() == ""
    assert [e["phase"] for e in chain.events("started")] == ["train"]
    assert sorted(chain.events("cancelled")[0]["jobs"]) == sorted(chain.jobs().values())
    assert chain.status()["state"] == "cancelled"
    assert "nothing to cancel" in chain.stacking("cancel", chain.run).stdout
    script(chain)
    chain.resume()
    chain.lab.wait_for(chain.jobs()["finish"], "COMPLETED")
    assert chain.finished() == PHASES


def test_the_reason_why_a_job_waits_is_shown(chain: Submitted) -> None:
    blocker = chain.lab.sbatch("--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 300")
    chain.lab.wait_for(blocker, "RUNNING")
    chain.submit()
    chain.lab.wait_until(lambda: chain.status()["jobs"][0]["reason"] in ("Resources", "Priority"))
    assert chain.status()["state"] == "queued"
    assert chain.status()["jobs"][1]["reason"] == "Dependency"
    assert "pending (Dependency)" in chain.stacking("status", chain.run).stdout
    chain.lab.run("scancel", str(blocker))
    chain.lab.wait_for(chain.jobs()["finish"], "COMPLETED")


def test_a_sites_settings_reach_the_jobs(lab: Lab, tmp_path: Path, data: Path) -> None:
    chain = Submitted(
        lab,
        tmp_path,
        recipe(tmp_path, data),
        python=stub(tmp_path),
        partition="high",
        options=["--nice=7"],
        comment="it's #1",
        cores_per_rank=2,
        hours=0.5,
        transition={"cores": 1, "hours": 0.25, "partition": "low", "options": ["--nice=9"]},
        prelude=['module() { export LOADED="$*"; }'],
        modules=["cuda/12", "gcc 13"],
        environment={"GREETING": 'it\'s $HOME `date` "x" \\ ; # é'},
        scratch=f"{tmp_path}/scratch/$SLURM_JOB_ID",
        srun=["--mpi=none"],
        interface="lo",
    )
    chain.submit()
    lab.wait_for(chain.jobs()["finish"], "COMPLETED")
    for name, file, *facts in (
        ("0-L1", "train0", "high", "00:30:00", "2", "7"),
        ("0-L1-to-1-L2", "consolidate0", "low", "00:15:00", "1", "9"),
    ):
        job = lab.job(chain.jobs()[name])
        assert [job["Partition"], job["TimeLimit"], job["CPUs/Task"], job["Nice"]] == facts
        assert "Comment=it's #1 \n" in lab.run("scontrol", "show", "job", str(chain.jobs()[name]))
        found = json.loads((tmp_path / f"environment.{file}.json").read_text())
        assert found["GREETING"] == f'it\'s {os.environ["HOME"]} `date` "x" \\ ; # é'
        assert found["LOADED"] == "load cuda/12 gcc 13"
        assert (found["STACKING_SRUN"], found["STACKING_INTERFACE"]) == ("--mpi=none", "lo")
        assert found["TMPDIR"] == f"{tmp_path}/scratch/{chain.jobs()[name]}" and Path(found["TMPDIR"]).is_dir()


def test_a_dry_run_prints_what_is_submitted_and_does_nothing(chain: Submitted) -> None:
    printed = chain.submit("--dry-run").stdout
    assert not chain.run.exists()
    assert chain.lab.run("squeue", "-h").strip() == ""
    chain.submit()
    for name in JOBS:
        assert (chain.run / "slurm" / f"{name}.sbatch").read_text() in printed
    assert printed.count("#!/bin/bash") == printed.count("# sbatch --parsable --hold") == len(JOBS)


def _submit_and_die(chain: Submitted, moment: str) -> None:
    """`stacking submit`, killed by SIGKILL after the first or after the last job."""
    victim = (
        "stacking.run.journal.Journal.append"
        if moment == "before the journal"
        else "stacking.launch.slurm_client.release"
    )
    code = f"""
import os, signal, sys
from unittest import mock
from stacking.cli.main import main
from stacking.run.journal import Journal
append = Journal.append
def die(*arguments, **facts):
    if {victim!r}.endswith("release") or arguments[1] == "submitted":
        os.kill(os.getpid(), signal.SIGKILL)
    return append(*arguments, **facts)
sys.argv = ["stacking", *sys.argv[1:]]
with mock.patch({victim!r}, die):
    main()
"""
    arguments = ["submit", chain.recipe, "--run-dir", chain.run, "--site", chain.site]
    argv = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(argv, env=chain.lab.environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
