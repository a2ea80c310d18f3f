"""A signal ends any command with one line and 75, or 130, from the first import on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stacking.run.folder import RunFolder
from tests.report.synthetic import SyntheticRun

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGUSR1, 75)]

AT_IMPORT = """
import os, runpy, sys
_, module, number = sys.argv
class Hook:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), int(number))
sys.meta_path.insert(0, Hook())
sys.argv = ["stacking", "plan", "demo"]
runpy.run_module("stacking", run_name="__main__")
"""


@pytest.mark.parametrize(("number", "code"), SIGNALS)
@pytest.mark.parametrize("module", ["stacking.cli.main", "stacking.cli.plan_text"])
def test_a_signal_while_modules_are_imported_ends_with_one_line(module: str, number: int, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", AT_IMPORT, module, str(int(number))], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stderr == f"stacking: stopped by {signal.Signals(number).name}\n"


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_that_a_library_turns_into_its_own_exception_ends_with_one_line(number: int, code: int) -> None:
    """pydantic_core raises a SchemaError for any exception from Python code that it calls while it builds a model."""
    script = (
        "import os\nfrom stacking.cli import main as cli\n"
        "@cli.cli.command()\ndef work():\n"
        f"    try:\n        os.kill(os.getpid(), {int(number)})\n"
        "    except BaseException as error:\n        raise RuntimeError('while a model is built') from error\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script, "work"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, f"stacking: stopped by {signal.Signals(number).name}\n")


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_while_a_command_is_working_ends_with_one_line(tmp_path: Path, number: int, code: int) -> None:
    run = SyntheticRun(tmp_path / "run")
    with RunFolder(run.path).locked():
        argv = [sys.executable, "-m", "stacking", "status", str(run.path), "--watch"]
        watching = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert watching.stdout is not None and watching.stdout.readline()
        watching.send_signal(number)
        _, error = watching.communicate(timeout=20)
    assert (watching.returncode, error) == (code, f"stacking: stopped by {signal.Signals(number).name}\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_partial_output(tmp_path: Path, number: int) -> None:
    script = (
        "import os, pathlib, sys, click\nfrom stacking.cli import main as cli\n"
        "from stacking.storage.files import new_folder\n"
        "@cli.cli.command()\ndef work():\n"
        "    with new_folder(pathlib.Path(sys.argv[2])) as folder:\n"
        "        (folder / 'half').write_text('half')\n"
        "        os.kill(os.getpid(), int(sys.argv[3]))\n"
        "sys.argv = [sys.argv[0], 'work', *sys.argv[1:]]\n"
        "cli.cli.commands['work'].allow_extra_args = True\n"
        "cli.cli.commands['work'].ignore_unknown_options = True\n"
        "cli.main()\n"
    )
    argv = [sys.executable, "-c", script, str(tmp_path / "out"), str(int(number))]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 75 and "stopped by" in done.stderr
    assert os.listdir(tmp_path) == []


def test_nohup_is_respected(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    with RunFolder(run.path).locked():
        argv = ["nohup", sys.executable, "-m", "stacking", "status", str(run.path), "--watch"]
        watching = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert watching.stdout is not None and watching.stdout.readline()
        watching.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert watching.poll() is None
        watching.terminate()
        assert watching.wait(timeout=20) == 75


@pytest.mark.parametrize("number", [number for number, _ in SIGNALS])
def test_a_signal_after_the_exit_code_is_decided_is_ignored(number: int) -> None:
    script = (
        "import atexit, os, sys\n"
        f"atexit.register(lambda: os.kill(os.getpid(), {int(number)}))\n"
        "sys.argv = ['stacking', '--version']\nimport stacking.__main__ as command\ncommand.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
