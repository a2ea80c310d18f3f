"""The command line: it starts quickly, explains itself, and answers a mistake with one line and exit code 2."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stacking.cli.main import cli
from stacking.data.prepare import prepare
from stacking.run.create import create_run
from stacking.run.folder import RunFolder
from stacking.storage.files import new_folder
from tests.chain import stacking, write_recipe
from tests.data.conftest import write_corpus

COMMANDS = [
    "adopt",
    "attention",
    "baseline",
    "bench",
    "cancel",
    "compare",
    "consolidate",
    "doctor",
    "evaluate",
    "expand",
    "export",
    "glue",
    "grow",
    "import",
    "plan",
    "prepare",
    "report",
    "resume",
    "run",
    "status",
    "submit",
    "tune",
]


def test_the_set_of_commands_is_fixed() -> None:
    assert sorted(cli.commands) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    done = stacking(command, "--help")
    assert done.stdout.startswith("Usage:") and len(done.stdout.splitlines()) > 5


def folder(tmp_path: Path, name: str, **manifest: object) -> Path:
    with new_folder(tmp_path / name, manifest) as made:
        (made / "file").write_text("content")
    return tmp_path / name


MISTAKES = {
    "an unknown command": (["trian"], "No such command 'trian'"),
    "an unknown option": (["plan", "demo", "--jsn"], "No such option '--jsn'"),
    "a missing option": (["run", "demo"], "Missing option '--run-dir'"),
    "a missing argument": (["grow", "--layers", "2", "--out", "x"], "Missing argument 'STATE'"),
    "an option of the wrong type": (["grow", "s", "--layers", "two", "--out", "x"], "'two' is not a valid integer"),
    "no layers": (["grow", "s", "--layers", "0", "--out", "x"], "0 is not in the range"),
    "an unknown recipe": (["plan", "dmeo"], "dmeo: is neither a file nor a shipped recipe; did you mean 'demo'?"),
    "a recipe that is not there": (["plan", "no/recipe.yaml"], "no/recipe.yaml: does not exist"),
    "a run without data": (["run", "demo", "--run-dir", "{tmp}/run"], "data.path: is missing"),
    "data that are not prepared": (
        ["run", "demo", "--run-dir", "{tmp}/run", "--data", "{tmp}"],
        "is not a prepared data",
    ),
    "a run in a folder without a name": (["run", "demo", "--run-dir", ""], "'--run-dir': the name is empty"),
    "an output without a name": (["grow", "s", "--layers", "2", "--out", ""], "'--out': the name is empty"),
    "a run in a folder of other things": (["run", "demo", "--run-dir", "{full}"], "is not empty"),
    "a run below a file": (["run", "demo", "--run-dir", "{file}/run"], "is a file, or is inside one"),
    "resuming what is not a run": (["resume", "{tmp}"], "is not a run; start one with `stacking run"),
    "the status of what is not a run": (["status", "{tmp}"], "run"),
    "the report of what is not a run": (["report", "{tmp}"], "run"),
    "consolidating nothing": (["consolidate", "{tmp}/none", "--out", "{tmp}/x"], "none"),
    "consolidating something else": (["consolidate", "{full}", "--out", "{tmp}/x"], "{full}"),
    "writing over something": (["consolidate", "{tmp}", "--out", "{full}"], "already exists"),
    "growing something else": (["grow", "{full}", "--layers", "2", "--out", "{tmp}/x"], "{full}"),
    "exporting something else": (["export", "{full}", "--out", "{tmp}/x"], "{full}"),
    "importing something else": (["import", "{full}", "--out", "{tmp}/x"], "{full}"),
    "a name that is too long": (["consolidate", "{tmp}", "--out", "a" * 300], "File name too long"),
    "a place where nothing can be": (["prepare", "{file}.txt", "--out", "/proc/x"], "/proc/.x.partial"),
    "a state that is a bare folder": (["grow", "{tmp}", "--layers", "2", "--out", "{tmp}/x"], "is not a state folder"),
    "a vocabulary of less than nothing": (
        ["prepare", "{tmp}", "--out", "{tmp}/x", "--vocabulary-size", "-1"],
        "--vocabulary-size: -1 is out of range; use 100 to 1,000,000",
    ),
    "a baseline of nothing": (["baseline", "{tmp}", "--run-dir", "{tmp}/b"], "is not a run directory (no plan.json)"),
    "a report beside nothing": (["report", "{tmp}", "--beside", "{tmp}"], "is not a run directory (no plan.json)"),
    "submitting nothing": (["submit", "--dry-run"], "give RECIPE and --run-dir DIR, or --resume RUN_DIR alone"),
    "submitting a recipe nowhere": (["submit", "demo"], "give RECIPE and --run-dir DIR"),
    "submitting two things": (["submit", "demo", "--resume", "{tmp}"], "give RECIPE and --run-dir DIR"),
    "submitting what is not a run": (["submit", "--resume", "{tmp}", "--dry-run"], "is not a run; submit one with"),
    "submitting with other data": (
        ["submit", "--resume", "{tmp}", "--data", "{tmp}"],
        "the run with its own data: omit --data",
    ),
    "submitting in an unknown way": (
        ["submit", "demo", "--run-dir", "{tmp}/x", "--mode", "all"],
        "'all' is not one of",
    ),
    "a site file that is not there": (
        ["submit", "demo", "--run-dir", "{tmp}/x", "--site", "{tmp}/s.yaml", "--dry-run"],
        "s.yaml: does not exist",
    ),
    "a site file that is none": (
        ["submit", "demo", "--run-dir", "{tmp}/x", "--site", "{file}", "--dry-run"],
        'is "content" where keys and values are expected',
    ),
    "cancelling what is not a run": (["cancel", "{tmp}"], "is not a run"),
    "preparing nothing": (["prepare", "--out", "{tmp}/x"], "give"),
    "preparing what is not there": (["prepare", "{tmp}/no.txt", "--out", "{tmp}/x"], "no.txt"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gives_one_line_and_exit_code_2(tmp_path: Path, mistake: str) -> None:
    arguments, words = MISTAKES[mistake]
    places = {"tmp": tmp_path, "full": folder(tmp_path, "full", kind="other"), "file": tmp_path / "full" / "file"}
    done = stacking(*(argument.format(**places) for argument in arguments), check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("stacking: ")
    assert words.format(**places) in done.stderr
    assert not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that can be run, with its data."""
    folder = tmp_path_factory.mktemp("refused")
    data = prepare([str(write_corpus(folder / "text"))], folder / "data", vocabulary_size=300, held_out=0.1, workers=1)
    return write_recipe(folder, data.folder)


REFUSALS = {
    "the slurm launcher outside of slurm": (
        ["--launcher", "slurm"],
        "--launcher slurm: works only inside a SLURM job",
    ),
    "a hostfile that is not there": (["--launcher", "mpi", "--hostfile", "no-hosts"], "no-hosts is not a file"),
    "a hostfile without mpi": (["--hostfile", "no-hosts"], "--hostfile: is for mpirun"),
    "a recipe key that is wrong": (["--set", "stages[0].steps=0"], "steps"),
    "data that are not there": (["--data", "no-data"], "is not a prepared data folder"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_run_writes_nothing(recipe: Path, tmp_path: Path, name: str) -> None:
    options, words = REFUSALS[name]
    if "mpi" in options and shutil.which("mpirun") is None:
        pytest.skip("mpirun is not on this machine")
    done = stacking("run", recipe, "--run-dir", tmp_path / "new" / "run", *options, check=False)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == "" and not (tmp_path / "new").exists()


def test_a_command_suggested_by_a_message_works_as_printed(recipe: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "it's my run")
    create_run(str(recipe), run)
    refused = stacking("run", recipe, "--run-dir", run.path, check=False)
    command = refused.stderr.split("`")[1]
    assert shlex.split(command) == ["stacking", "resume", str(run.path)]
    done = stacking(*shlex.split(command)[1:], "--only", "train:9", check=False)
    assert "'train:9' is not a phase of this run" in done.stderr


def test_startup_loads_only_what_the_command_needs() -> None:
    script = (
        "import sys, stacking.cli.main; print(*{'torch', 'numpy', 'pydantic', 'rich', 'matplotlib'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full does not exist")
def test_a_full_disk_behind_stdout_is_reported_in_one_line() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "stacking", "plan", "demo"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "stacking: standard output: No space left on device; check its destination\n"
