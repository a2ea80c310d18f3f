"""Any file of a run or of its data may be corrupted, cut, emptied or lost: harmless, healed, or refused by its name.

The run here is real but for its training, which only writes checkpoints that depend on all that training reads: the
data, the state that it starts from, and what their manifests say. Two moments of it are damaged: before the second
stage trains, and after.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stacking.cli.main import cli
from stacking.data.corpus import Corpus
from stacking.data.prepare import prepare
from stacking.data.sampler import SAMPLERS
from stacking.errors import StackingError, UserError
from stacking.launch.job import Accelerator, Fate, Job, Outcome
from stacking.model.size import parameter_shapes
from stacking.planning.plan import StagePlan, load_plan
from stacking.run.checkpoints import checkpoints, latest, point_latest, tag
from stacking.run.controller import Controller
from stacking.run.create import create_run, open_run
from stacking.run.folder import RunFolder
from stacking.run.phases import starting_state
from stacking.run.progress import Progress
from stacking.state.format import WEIGHTS, State
from stacking.storage.files import move_folder, seal_folder, verify_folder, write_sealed
from tests.chain import write_recipe
from tests.data.conftest import write_corpus
from tests.state.checkpoints import write_checkpoint

BEFORE, AFTER = "before the last training", "after the last training"
STAGES = [
    {"layers": 1, "steps": 4, "batch_sequences": 8, "learning_rate": {"peak": 1e-3}},
    {"layers": 2, "steps": 4},
]


class InThisProcess:
    """A launcher that runs the phases' commands, and pretends to train."""

    unattended = False
    overlaps = False

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def capacity(self, accelerator: Accelerator) -> int | None:
        return None

    def requeue(self) -> Fate:
        return Fate()

    def start(self, job: Job, inherited: Sequence[int] = ()) -> Ended:
        job.logs.mkdir(parents=True, exist_ok=True)
        _, _, module, *arguments = job.argv
        try:
            if module == "stacking":
                cli.main(list(arguments), standalone_mode=False)
            else:
                plan = load_plan(self.run.plan)
                pretend_to_train(self.run, plan.stages[int(arguments[1])])
        except StackingError as error:
            job.log(0).write_text(str(error))
            return Ended(Outcome(exit_code=error.exit_code, log=job.log(0)))
        return Ended(Outcome(exit_code=0))


class Ended:
    def __init__(self, outcome: Outcome) -> None:
        self.poll: Callable[[], Outcome] = lambda: outcome

    def stop(self) -> None: ...

    def kill(self) -> None: ...


def pretend_to_train(run: RunFolder, stage: StagePlan) -> None:
    """Write the checkpoints that are missing; Adam's step in them is a digest of everything that training reads."""
    plan, folder = load_plan(run.plan), run.stage(stage.name)
    seen = xxhash.xxh3_128(stage.model_dump_json().encode())
    for split in ("train", "held_out"):
        corpus, rows = Corpus(Path(str(plan.data.path)), split), np.load(run.samples(split))
        sampler = SAMPLERS[plan.data.samples](corpus, rows, plan.data.sequence_length, plan.seed, 0.15)
        for array in sampler.batch(np.arange(16)):
            seen.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    if (start := starting_state(plan, run, stage)) is not None:
        state = State(start)
        seen.update(repr((state.optimizer_step, state.model, state.moments)).encode())
        for name in state.names:
            seen.update(state.read(WEIGHTS, name).tobytes())
    if (before := latest(folder.checkpoints)) is not None:
        verify_folder(before)
    model = plan.model.with_layers(stage.layers)
    for step in (stage.steps - 2, stage.steps):
        if (folder.checkpoints / tag(step)).exists():
            continue
        saving = folder.checkpoints / ".saving"
        groups = [dict(parameter_shapes(model))]
        write_checkpoint(saving / tag(step), groups, step=seen.intdigest() % (1 << 20) + step)
        progress = {"model": model.model_dump(), "stage": stage.index, "step": step, "stages": []}
        write_sealed(saving / tag(step) / "progress.json", progress)
        seal_folder(saving / tag(step), {"kind": "checkpoint", "format": 1})
        move_folder(saving / tag(step), folder.checkpoints / tag(step))
        point_latest(folder.checkpoints, folder.checkpoints / tag(step))
    shutil.rmtree(folder.checkpoints / ".saving", ignore_errors=True)


def resume(run: RunFolder) -> list[str]:
    """Do what `stacking resume` does; returns its output."""
    said: list[str] = []
    with run.locked(patience=0) as lease, open(os.devnull, "w") as nowhere:
        plan = open_run(run, said.append)
        with Progress(plan, stream=nowhere) as progress:
            progress.note = said.append  # type: ignore[method-assign]
            Controller(run, plan, InThisProcess(run), progress, lease).run()
    return said


def product(run: RunFolder) -> dict[str, Any]:
    """The files that a user keeps."""
    manifest = verify_folder(run.stage("1-L2").state)
    files = {path.name: path.read_bytes() for path in run.export.iterdir()}
    return {"state": manifest, **files}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, and pristine copies of it at both moments."""
    folder = tmp_path_factory.mktemp("damage")
    prepare([str(write_corpus(folder / "text"))], folder / "data", vocabulary_size=300, held_out=0.1, workers=1)
    launch = {"launcher": "local", "ranks": 1, "accelerator": "cpu"}
    recipe = write_recipe(folder, folder / "data", stages=STAGES, launch=launch)
    run = RunFolder(folder / "run")
    run.path.mkdir()
    create_run(str(recipe), run)
    resume(run)
    shutil.copytree(run.path, folder / "finished")
    for moment, removed in ((AFTER, ["1-L2/state"]), (BEFORE, ["1-L2/state", "1-L2/checkpoints"])):
        shutil.copytree(run.path, folder / moment)
        for name in [*removed, "export", "report.html"]:
            path = folder / moment / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(folder / "data", folder / "pristine data")
    return folder


def bite(path: Path, position: float, bit: int) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[int(position * len(content))] ^= 1 << bit
    _replace(path, bytes(content))


def cut(path: Path, position: float, bit: int) -> None:
    _replace(path, path.read_bytes()[: int(position * path.stat().st_size)])


def empty(path: Path, position: float, bit: int) -> None:
    _replace(path, b"")


def lose(path: Path, position: float, bit: int) -> None:
    path.unlink()


def _replace(path: Path, content: bytes) -> None:
    path.unlink()  # shared files are hard links: only one name of them is damaged
    path.write_bytes(content)


DAMAGES = [bite, bite, bite, cut, empty, lose]
METADATA = (".json", ".jsonl", ".yaml", ".txt", "latest", "lock", "samples.train.npy", "samples.held_out.npy")


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def restore(place: Path, moment: str) -> RunFolder:
    for name, pristine in (("run", moment), ("data", "pristine data")):
        shutil.rmtree(place / name)
        shutil.copytree(place / pristine, place / name)
    return RunFolder(place / "run")


def check(place: Path, moment: str, name: str, damage: Callable[[Path], None]) -> None:
    """Damage ``name`` and resume; a finished run must equal the undisturbed one, a refusal must name the file."""
    run = restore(place, moment)
    damage(place / name)
    try:
        resume(run)
    except StackingError as refusal:
        assert isinstance(refusal, UserError) or refusal.exit_code == UserError.exit_code, refusal
        assert name.rpartition("/")[2] in str(refusal) and "\n" not in str(refusal)
        return
    assert product(run) == product(RunFolder(place / "finished"))
    assert not [path for path in run.path.rglob("*") if path.suffix == ".partial" or path.name == ".saving"]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_to_metadata_is_harmless_healed_or_refused_by_name(place: Path, data: st.DataObject) -> None:
    moment = data.draw(st.sampled_from([BEFORE, AFTER]))
    names = [f"run/{name}" for name in files_of(place / moment)]
    names += [f"data/{name}" for name in files_of(place / "pristine data")]
    name = data.draw(st.sampled_from([name for name in names if name.endswith(METADATA)]))
    damage = data.draw(st.sampled_from(DAMAGES))
    position, bit = data.draw(st.floats(0, 1, exclude_max=True)), data.draw(st.integers(0, 7))
    check(place, moment, name, partial(damage, position=position, bit=bit))


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_to_data_and_tensors_is_harmless_healed_or_refused_by_name(place: Path, data: st.DataObject) -> None:
    moment = data.draw(st.sampled_from([BEFORE, AFTER]))
    names = [f"run/{name}" for name in files_of(place / moment)]
    names += [f"data/{name}" for name in files_of(place / "pristine data")]
    name = data.draw(st.sampled_from([name for name in names if not name.endswith((*METADATA, ".log", ".html"))]))
    damage = data.draw(st.sampled_from(DAMAGES))
    position, bit = data.draw(st.floats(0, 1, exclude_max=True)), data.draw(st.integers(0, 7))
    check(place, moment, name, partial(damage, position=position, bit=bit))


def edit(old: str, new: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        text = path.read_text()
        assert old in text
        _replace(path, text.replace(old, new, 1).encode())

    return change


SILENT = {
    "the optimizer's step": ("run/1-L2/start/manifest.json", '"optimizer_step": ', '"optimizer_step": 8'),
    "the heads of the model": ("run/1-L2/start/manifest.json", '"heads": 2', '"heads": 4'),
    "the epsilon of the norms": ("run/0-L1/state/manifest.json", "1e-12", "1e-16"),
    "the id of [MASK]": ("data/manifest.json", '"mask": 4', '"mask": 5'),
    "the id of [SEP]": ("data/manifest.json", '"sep": 3', '"sep": 2'),
    "the size of the vocabulary": ("data/manifest.json", '"vocabulary": 2', '"vocabulary": 3'),
    "the plan's seed": ("run/plan.json", '"seed": 7', '"seed": 6'),
}


@pytest.mark.parametrize("what", SILENT)
def test_a_small_change_of_meaning_is_detected_like_damaged_bytes(place: Path, what: str) -> None:
    name, old, new = SILENT[what]
    check(place, BEFORE, name, edit(old, new))


def swap_for_a_file(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.write_text("a file")


@pytest.mark.parametrize("name", ["1-L2/checkpoints", "1-L2/start"])
def test_a_file_in_place_of_a_folder_is_set_aside(place: Path, name: str) -> None:
    check(place, BEFORE, f"run/{name}", swap_for_a_file)
    assert not (place / f"run/{name}").is_file()


def test_damage_to_the_newest_checkpoint_falls_back_to_the_previous_one(place: Path) -> None:
    run = restore(place, AFTER)
    newest = checkpoints(run.stage("1-L2").checkpoints)[-1]
    (newest / "progress.json").unlink()
    said = resume(run)
    assert any("progress.json" in line and "set aside" in line for line in said)
    assert product(run) == product(RunFolder(place / "finished"))
    assert not list(run.path.rglob("*.damaged*"))
