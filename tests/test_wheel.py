"""The wheel works away from the checkout: a chain, a ready ds_config, a SLURM script."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.chain import ENVIRONMENT, prepare_text, write_recipe

ROOT = Path(__file__).parent.parent

WITHOUT_CHECKOUT = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}

pytestmark = [pytest.mark.slow, pytest.mark.distributed(ranks=1)]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command `stacking` of a new environment that has the wheel and, for its dependencies, this one's packages."""
    folder = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(".*", "tests", "runs", "build"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    subprocess.run(build, check=True, cwd=folder, env=WITHOUT_CHECKOUT)
    (wheel,) = folder.glob("stacking-*.whl")
    venv.create(folder / "venv", symlinks=True)
    install = [*pip, "--python", folder / "venv" / "bin" / "python", "install", "--no-deps", wheel]
    subprocess.run(install, check=True, cwd=folder, env=WITHOUT_CHECKOUT)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    return folder / "venv" / "bin" / "stacking"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_text(tmp_path_factory.mktemp("text"))


def run(command: Path, cwd: Path, *arguments: object) -> str:
    argv = [str(command), *map(str, arguments)]
    done = subprocess.run(argv, cwd=cwd, env=WITHOUT_CHECKOUT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_chain_runs_through_to_its_report(installed: Path, data: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data, stages=[*SHORT_STAGES], launch={"ranks": 1, "accelerator": "cpu"})
    run(installed, tmp_path, "run", recipe, "--run-dir", "chain")
    assert (tmp_path / "chain" / "report.html").is_file()


def test_a_ready_ds_config_is_found(installed: Path, tmp_path: Path) -> None:
    changes = ["--set", "ds_config=v100/bert-base.json", "--set", "precision=auto"]
    plan = json.loads(run(installed, tmp_path, "plan", "bert-base-v100", *changes, "--json"))
    ready = json.loads((ROOT / "ds_configs" / "v100" / "bert-base.json").read_text())
    assert plan["stages"][0]["ds_config"]["fp16"].items() >= ready["fp16"].items()


def test_slurm_scripts_are_rendered(installed: Path, data: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data, stages=[*SHORT_STAGES])
    scripts = run(installed, tmp_path, "submit", recipe, "--run-dir", "job", "--dry-run")
    assert "#SBATCH" in scripts and not (tmp_path / "job").exists()


SHORT_STAGES = (
    {"layers": 1, "steps": 2, "batch_sequences": 4, "micro_batch": 2, "learning_rate": {"peak": 1e-3}},
    {"layers": 2, "steps": 2},
)
