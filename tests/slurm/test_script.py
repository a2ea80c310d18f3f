"""Complete scripts: the files in golden/ are what a cluster gets."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stacking.config.resources import Resources
from stacking.config.shipped import SLURM_TEMPLATES
from stacking.errors import UserError
from stacking.run.folder import RunFolder
from stacking.slurm.chain import MODES, chain, ignored
from stacking.slurm.script import script, title
from stacking.slurm.site import Site, TransitionRequests, load_site
from tests.slurm.plans import plan_for_jobs

GOLDEN = Path(__file__).parent / "golden"
RUN = RunFolder(Path("/shared/it's my $HOME; run"))
PLAIN = Site(python="/usr/bin/python3")


def scripts(site: Site, mode: str, run: RunFolder = RUN, **changes: object) -> dict[str, str]:
    plan = plan_for_jobs(**changes)  # type: ignore[arg-type]
    return {job.name: script(job, plan, run, site) for job in chain(plan, run, site, mode)}  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["0-L3", "0-L3-to-1-L6", "2-L12", "finish", "watch"])
def test_scripts_of_a_chain_with_every_setting_match_the_golden_files(name: str) -> None:
    made = scripts(load_site(GOLDEN / "site.yaml"), "per-stage")[name]
    assert made == (GOLDEN / f"{name}.sbatch").read_text()


def test_the_script_of_one_allocation_with_every_setting_matches_the_golden_file() -> None:
    made = scripts(load_site(GOLDEN / "site.yaml"), "one-allocation")["run"]
    assert made == (GOLDEN / "run.sbatch").read_text()


@pytest.mark.parametrize(("mode", "name"), [("per-stage", "0-L3"), ("per-stage", "finish"), ("one-allocation", "run")])
def test_without_a_site_file_only_universally_available_resources_are_requested(mode: str, name: str) -> None:
    made = scripts(PLAIN, mode, accelerator="cpu", resources=[Resources()] * 3)[name]
    assert made == (GOLDEN / "plain" / f"{name}.sbatch").read_text()


@pytest.mark.parametrize("mode", MODES)
def test_every_script_is_bash(mode: str) -> None:
    for made in scripts(load_site(GOLDEN / "site.yaml"), mode).values():
        checked = subprocess.run(["bash", "-n"], input=made, capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, "")


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["C"], exclude_characters="%\\/"), min_size=1))
def test_any_folder_name_reaches_the_program_unchanged(name: str) -> None:
    run = RunFolder(Path("/runs") / name)
    last = scripts(PLAIN, "per-stage", run)["finish"].rstrip("\n").split("\nsupervise ")[-1]
    assert shlex.split(last.partition("\ncode=")[0])[4] == str(run.path)


def bash(made: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a script as SLURM does: from a file, in the run's folder."""
    (folder / "slurm").mkdir(exist_ok=True)
    (folder / "script").write_text(made)
    environment = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "7", **variables}
    return subprocess.run(["bash", "script"], cwd=folder, capture_output=True, text=True, env=environment)


def test_values_of_variables_reach_bash_unchanged(tmp_path: Path) -> None:
    value = 'it\'s $5 `date` "x" \\ ; # é $(date) $'
    made = scripts(Site(environment={"GREETING": value}), "per-stage")["finish"]
    body = made.replace("\nsupervise ", '\nprintf %s "$GREETING"; exit\n')
    assert bash(body, tmp_path).stdout == value


def test_references_to_variables_are_expanded_by_the_job(tmp_path: Path) -> None:
    made = scripts(Site(environment={"PATHS": "/x:$HOME:${HOME}/y"}), "per-stage")["finish"]
    body = made.replace("\nsupervise ", '\nprintf %s "$PATHS"; exit\n')
    assert bash(body, tmp_path, HOME="/h").stdout == "/x:/h:/h/y"


def test_a_warning_that_would_come_immediately_is_refused() -> None:
    with pytest.raises(UserError, match=r"warning_seconds: is 300, and job 0-L3 ends after 300 s"):
        scripts(PLAIN, "per-stage", resources=[Resources(hours=300 / 3600)] * 3)


def test_a_name_that_slurm_or_bash_could_misread_becomes_plain() -> None:
    made = scripts(PLAIN, "per-stage", RunFolder(Path("/runs/a b #SBATCH --uid=0; é")))["0-L3"]
    assert re.search(r"^#SBATCH --job-name=\w{3}-0-L3-a_b_SBATCH_--uid_0_$", made, re.MULTILINE)


def test_the_first_eight_characters_distinguish_runs_and_stages() -> None:
    jobs = chain(plan_for_jobs(), RUN, PLAIN, "per-stage")
    names = {title(Path("/runs") / run, job.name)[:8] for run in ("bert-large-a", "bert-large-b") for job in jobs}
    assert len(names) == 2 * (len(jobs) - 2)  # the name of a transition starts like that of the stage before it


def test_a_stage_requests_its_resources_and_a_transition_its_own() -> None:
    wide = Resources(account="a2", partition="p2", constraint="c2", memory="1G", reservation="r2", exclude="n2")
    wide = wide.model_copy(update={"gpu_option": "--gres=gpu:a100:{gpus}", "exclusive": True, "cores_per_rank": 3})
    wide = wide.model_copy(update={"options": ("--nice=2",), "prelude": ("echo 2",), "modules": ("m2",)})
    site = Site(
        partition="p1", options=("--nice=1",), prelude=("echo 1",), transition=TransitionRequests(options=("--nice=3",))
    )
    made = scripts(site, "per-stage", resources=[Resources(), wide, Resources()])
    lines = set(made["1-L6"].splitlines())
    asked = "account=a2 partition=p2 constraint=c2 mem=1G reservation=r2 exclude=n2 gres=gpu:a100:1 exclusive nice=2"
    assert {f"#SBATCH --{option}" for option in asked.split()} <= lines
    assert {"#SBATCH --cpus-per-task=3", "echo 2", "module load m2"} <= lines
    assert not {"#SBATCH --nice=1", "#SBATCH --partition=p1", "echo 1"} & lines
    assert {"#SBATCH --nice=1", "#SBATCH --partition=p1", "echo 1"} <= set(made["0-L3"].splitlines())
    between = set(made["0-L3-to-1-L6"].splitlines())
    assert {"#SBATCH --nice=3", "echo 1"} <= between and "#SBATCH --partition=p1" not in between


@pytest.mark.parametrize(("option", "line"), [("--gpus-per-task=1", "#SBATCH --gpus-per-task=1"), ("none", None)])
def test_gpus_are_requested_per_task_or_not_at_all(option: str, line: str | None) -> None:
    made = scripts(Site(gpu_option=option), "per-stage")["0-L3"]
    assert [found for found in made.splitlines() if "gpu" in found] == ([line] if line else [])


def test_cores_per_gpu_replace_cores_per_task() -> None:
    made = scripts(Site(options=("--cpus-per-gpu=8",)), "per-stage")["0-L3"]
    assert "--cpus-per-gpu=8" in made and "--cpus-per-task" not in made


@pytest.mark.parametrize(
    ("option", "key"),
    [("-p other", "partition"), ("--mem=1G", "memory"), ("--gres=gpu:1", "gpu_option"), ("--mail-type=ALL", "mail")],
)
def test_an_option_that_duplicates_a_key_is_refused(option: str, key: str) -> None:
    site = Site(partition="gpu", memory="2G", mail="me", options=(option,))
    with pytest.raises(UserError, match=f"^options: has {option} for job 0-L3, and {key} is set too"):
        scripts(site, "per-stage")


def test_one_allocation_names_the_settings_that_it_ignores() -> None:
    plan = plan_for_jobs(resources=[Resources(hours=100), Resources(hours=24, nodes=2), Resources(partition="big")])
    assert ignored(plan, "one-allocation") == ["stages[1].resources.hours", "stages[2].resources.partition"]
    assert ignored(plan, "per-stage") == []


@pytest.mark.parametrize("order", [("modules", "prelude"), ("prelude", "modules")])
def test_modules_and_prelude_run_in_the_order_of_the_file(tmp_path: Path, order: tuple[str, str]) -> None:
    lines = {"modules": "modules: [m1, m2]\n", "prelude": "prelude: [p1]\n"}
    (tmp_path / "site.yaml").write_text("".join(lines[key] for key in order))
    site = load_site(tmp_path / "site.yaml")
    (tmp_path / "kept.yaml").write_text(site.to_yaml())
    for read in (site, load_site(tmp_path / "kept.yaml")):
        made = scripts(read, "per-stage")["finish"]
        commands = {"modules": made.index("module load m1 m2"), "prelude": made.index("\np1\n")}
        assert sorted(commands, key=commands.__getitem__) == list(order)


def run_setup(folder: Path, *prelude: str) -> subprocess.CompletedProcess[str]:
    """Runs a script up to its program."""
    made = scripts(Site(prelude=prelude), "per-stage")["finish"].replace("\nsupervise ", "\necho reached; exit\n")
    return bash(made, folder)


def test_the_job_ends_at_the_first_failing_line_of_the_prelude(tmp_path: Path) -> None:
    done = run_setup(tmp_path, "true", "(exit 3)", "echo later")
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "stacking: failed: ( exit 3 )\n")
    assert (tmp_path / "slurm" / "finish.7.code").read_text() == "3\n"  # an error, which the watcher does not mend


def test_handled_failures_in_the_prelude_and_ignored_ones_in_sourced_files_do_not_end_the_job(tmp_path: Path) -> None:
    (tmp_path / "inner").write_text("false\ntrue\n")
    done = run_setup(tmp_path, "false || true", "if false; then", "echo", "fi", f"source {tmp_path}/inner")
    assert (done.returncode, done.stdout) == (0, "reached\n")


def test_an_unset_variable_in_a_path_ends_the_job_and_names_the_key(tmp_path: Path) -> None:
    site = Site(python="$VENV/bin/python", prelude=("true",))
    made = scripts(site, "per-stage")["finish"]
    done = bash(made, tmp_path)
    assert done.returncode != 0 and "VENV: is not set, but python in the site file names it" in done.stderr


@pytest.mark.parametrize("name", ["100%", "back\\slash", "new\nline", "bell\a"])
def test_a_path_that_slurm_would_alter_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="choose another folder") as caught:
        scripts(PLAIN, "per-stage", RunFolder(Path("/runs") / name))
    assert "\n" not in str(caught.value)


def test_time_limits_are_rounded_up_to_seconds() -> None:
    times = [
        line
        for hours in (0.12, 1.0, 23.9999, 100)
        for line in scripts(PLAIN, "per-stage", resources=[Resources(hours=hours)] * 3)["0-L3"].splitlines()
        if "--time" in line
    ]
    assert [line.split("=")[1] for line in times] == ["0-00:07:12", "0-01:00:00", "1-00:00:00", "4-04:00:00"]


def test_an_elastic_stage_requests_nodes_not_tasks() -> None:
    """With --ntasks-per-node Slurm uses as few nodes as a range allows."""
    site = Site(python="/usr/bin/python3", ranks_per_node=4, cores_per_rank=8)
    made = scripts(site, "per-stage", resources=[Resources(min_nodes=1)] * 3)
    lines = made["2-L12"].splitlines()
    assert {"#SBATCH --nodes=1-2", "#SBATCH --cpus-per-task=32", "#SBATCH --gres=gpu:4"} <= set(lines)
    assert "export STACKING_RANKS_PER_NODE=4" in lines and "--ntasks" not in made["2-L12"]
    assert {"#SBATCH --nodes=1", "#SBATCH --ntasks-per-node=2"} <= set(made["0-L3"].splitlines())


def own_templates(tmp_path: Path, text: str) -> Site:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "training.sbatch").write_text(text)
    (tmp_path / "site.yaml").write_text("templates: mine\n")
    return load_site(tmp_path / "site.yaml")


def test_a_site_can_provide_its_own_version_of_a_template(tmp_path: Path) -> None:
    shipped = (SLURM_TEMPLATES / "training.sbatch").read_text()
    first = "#SBATCH --nodes"
    site = own_templates(tmp_path, shipped.replace(first, f"#SBATCH --hint=nomultithread\n{first}", 1))
    made = scripts(site, "per-stage")
    assert "#SBATCH --hint=nomultithread\n" in made["0-L3"]
    assert "hint" not in made["finish"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "#!/bin/bash\n#SBATCH -A {{ acount }}\n",
            "line 2: {{ acount }} is not a placeholder; did you mean 'account'?",
        ),
        ("{% if false %}\n{{ nodez }}\n{% endif %}", "line 2: {{ nodez }} is not a placeholder; did you mean 'nodes'?"),
        ("{{ cores }}", "line 1: {{ cores }} is not a placeholder"),
        ("a\n{{ account", "line 2: is not a template"),
        ("{% if account %}", "line 1: is not a template"),
        ('{% include "nothing.sh" %}', "cannot be rendered ('nothing.sh' not found"),
        ("{{ nodes.counts }}", "cannot be rendered"),
        ("{{ nodes + account }}", "cannot be rendered"),
    ],
)
def test_an_unfilled_placeholder_is_refused(tmp_path: Path, text: str, words: str) -> None:
    site = own_templates(tmp_path, text)
    with pytest.raises(UserError) as caught:
        scripts(site, "per-stage")
    assert str(caught.value).startswith(f"{tmp_path / 'mine' / 'training.sbatch'}: ")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_template_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no/templates: is not a folder of templates"):
        scripts(Site(templates="no/templates"), "per-stage")
