"""Reading DeepSpeed checkpoints: where the elements are, and what is refused. (Real engines: test_matrix.)"""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stacking.errors import DamagedFile, UserError
from stacking.model.config import ModelConfig
from stacking.model.size import parameter_shapes
from stacking.state.consolidate import consolidate
from stacking.state.format import MOMENTS
from stacking.state.zero import ZeroCheckpoint
from stacking.storage.files import seal_folder, write_sealed
from tests.state.ranks import ROOT

torch = pytest.importorskip("torch")
from tests.state.checkpoints import GROUPS, shard_file, write_checkpoint  # noqa: E402

VALUES = {"tokens.weight": np.arange(100, 115), "layers.0.up.weight": np.arange(200, 212)}


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_a_parameter_is_assembled_from_all_ranks(tmp_path: Path, ranks: int) -> None:
    checkpoint = ZeroCheckpoint(write_checkpoint(tmp_path / "c", ranks=ranks))

    assert checkpoint.names == ("tokens.weight", "layers.0.up.weight", "layers.0.up.bias")
    assert checkpoint.shape("layers.0.up.weight") == (4, 3)
    assert checkpoint.optimizer_step == 7
    for name, values in VALUES.items():
        np.testing.assert_array_equal(checkpoint.read("weights", name), values)
        np.testing.assert_array_equal(checkpoint.read("exp_avg", name), values / 2)
        np.testing.assert_array_equal(checkpoint.read("exp_avg_sq", name, 3, 11), values[3:11] / 4)
    np.testing.assert_array_equal(checkpoint.read("buffers", "seen"), [1, 2])


def test_the_parent_folder_leads_to_the_latest_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "global_step5")
    (tmp_path / "latest").write_text("global_step5")

    assert ZeroCheckpoint(tmp_path).path == tmp_path / "global_step5"

    (tmp_path / "latest").write_text("global_step6")
    with pytest.raises(DamagedFile, match="latest: names global_step6, which is missing"):
        ZeroCheckpoint(tmp_path)


def test_moments_that_were_never_created_are_absent(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", ranks=1)
    shard = torch.load(shard_file(folder, 0), weights_only=False)
    shard["optimizer_state_dict"]["base_optimizer_state"]["state"] = {}
    torch.save(shard, shard_file(folder, 0))

    checkpoint = ZeroCheckpoint(folder)

    assert not checkpoint.moments and checkpoint.optimizer_step == 0
    assert not consolidate(folder, tmp_path / "state").moments


def test_consolidating_changes_nothing_in_the_checkpoint(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    state = consolidate(folder, tmp_path / "state")

    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert state.manifest["provenance"] == {"checkpoint": "c", "finite": True}
    np.testing.assert_array_equal(state.read("weights", "layers.0.up.bias"), [300, 301, 302, 303])


def test_the_trainers_additional_record_goes_into_the_state(tmp_path: Path) -> None:
    model = {"layers": 1, "hidden": 4, "heads": 1, "intermediate": 8, "vocabulary": 5}
    folder = write_checkpoint(tmp_path / "c", [dict(parameter_shapes(ModelConfig(**model)))])
    write_sealed(folder / "progress.json", {"model": model, "stage": 0, "step": 7})
    seal_folder(folder, {})

    state = consolidate(folder, tmp_path / "state")

    assert state.model is not None and state.model.hidden == 4
    assert state.progress is not None and state.progress["step"] == 7


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_missing_shard_is_named(tmp_path: Path, rank: int) -> None:
    folder = write_checkpoint(tmp_path / "c", ranks=3)
    shard_file(folder, rank).unlink()

    with pytest.raises(DamagedFile, match=f"{shard_file(folder, rank).name}: is missing"):
        ZeroCheckpoint(folder)


def test_shards_of_another_world_size_are_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", ranks=2)
    shutil.copy(shard_file(folder, 1), shard_file(folder, 2))

    with pytest.raises(UserError, match="holds shards of 3 ranks, but rank 0 was one of 2"):
        ZeroCheckpoint(folder)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_optim_states.pt"])
def test_a_torn_file_is_named(tmp_path: Path, name: str, keep: float) -> None:
    file = write_checkpoint(tmp_path / "c") / name
    data = file.read_bytes()
    file.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])

    with pytest.raises(DamagedFile, match=name):
        consolidate(file.parent, tmp_path / "state")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("sealed", [True, False])
def test_an_altered_byte_is_found_and_its_file_named(tmp_path: Path, sealed: bool) -> None:
    """By our manifest's checksum; in another program's checkpoint by the archive's own."""
    folder = write_checkpoint(tmp_path / "c")
    if sealed:
        seal_folder(folder, {})
    file = shard_file(folder, 1)
    data = bytearray(file.read_bytes())
    position = data.find(torch.tensor([302.0]).numpy().tobytes())
    data[position] ^= 1
    file.write_bytes(data)

    with pytest.raises(DamagedFile, match=file.name):
        consolidate(folder, tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_our_own_checkpoint_without_its_manifest_is_damaged(tmp_path: Path) -> None:
    """Nothing vouches for its files any more; only another program's checkpoint never has a manifest."""
    folder = write_checkpoint(tmp_path / "c")
    write_sealed(folder / "progress.json", {"step": 4})
    with pytest.raises(DamagedFile, match=r"manifest\.json: is missing"):
        consolidate(folder, tmp_path / "state")
    assert not (tmp_path / "state").exists()


class _Malice:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.target,)  # type: ignore[return-value]


@pytest.mark.parametrize("file", ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, file: str) -> None:
    folder = write_checkpoint(tmp_path / "c")
    content = torch.load(folder / file, weights_only=False)
    torch.save({**content, "harmless": _Malice(tmp_path / "run")}, folder / file)

    with pytest.raises(UserError, match=rf"{file}: mentions \S+, which no checkpoint needs"):
        ZeroCheckpoint(folder)
    assert not (tmp_path / "run").exists()
    pickle.loads(pickle.dumps(_Malice(tmp_path / "run")))  # it would have, elsewhere
    assert (tmp_path / "run").exists()


class _Gradients:
    """Pickled as Python 3.11.0 to 3.11.3 pickle ``ZeroStageEnum.gradients``."""

    def __reduce__(self) -> tuple[object, tuple[object, str]]:
        from deepspeed.runtime.zero.config import ZeroStageEnum

        return getattr, (ZeroStageEnum, "gradients")


def test_the_zero_stage_is_read_however_python_pickled_it(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c")
    for rank in range(2):
        content = torch.load(shard_file(folder, rank), weights_only=False)
        content["optimizer_state_dict"]["zero_stage"] = _Gradients()
        torch.save(content, shard_file(folder, rank))
    np.testing.assert_array_equal(ZeroCheckpoint(folder).read("weights", "tokens.weight"), VALUES["tokens.weight"])


def test_folders_that_are_not_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        ZeroCheckpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no DeepSpeed checkpoint"):
        ZeroCheckpoint(tmp_path)
    (tmp_path / "mp_rank_00_model_states.pt").write_bytes(b"")
    with pytest.raises(DamagedFile, match=r"mp_rank_00_model_states\.pt: is torn"):
        ZeroCheckpoint(tmp_path)
    torch.save({"module": {}}, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(UserError, match="is not a model file of DeepSpeed"):
        ZeroCheckpoint(tmp_path)


def test_an_unknown_zero_stage_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", ranks=1)
    shard = torch.load(shard_file(folder, 0), weights_only=False)
    shard["optimizer_state_dict"]["zero_stage"] = 4
    torch.save(shard, shard_file(folder, 0))

    with pytest.raises(UserError, match="unknown ZeRO stage 4"):
        ZeroCheckpoint(folder)


def test_model_parallel_and_frozen_checkpoints_are_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "parallel", ranks=1)
    shutil.copy(shard_file(folder, 0), folder / "zero_pp_rank_0_mp_rank_01_optim_states.pt")
    with pytest.raises(UserError, match="model- or pipeline-parallel"):
        ZeroCheckpoint(folder)

    folder = write_checkpoint(tmp_path / "frozen", ranks=1)
    model = torch.load(folder / "mp_rank_00_model_states.pt", weights_only=False)
    model["frozen_param_shapes"]["x"] = torch.Size([1])
    torch.save(model, folder / "mp_rank_00_model_states.pt")
    with pytest.raises(UserError, match="frozen parameters"):
        ZeroCheckpoint(folder)


def _zero0(folder: Path, groups: list[dict[str, object]], shapes: dict[str, tuple[int, ...]], key: str = "") -> Path:
    """A ZeRO 0 checkpoint in fp32, whose optimizer numbers the parameters in the order of ``groups``."""
    order = [name for group in groups for name in group["names"]]  # type: ignore[attr-defined]
    module = {name: torch.full(shape, float(i)) for i, (name, shape) in enumerate(shapes.items())}
    state = {i: {"step": 2, **dict.fromkeys(MOMENTS, module[name] + 10)} for i, name in enumerate(order)}
    numbers = iter(range(len(order)))
    saved = [{"params": [next(numbers) for _ in g["names"]], **({key: g["names"]} if key else {})} for g in groups]  # type: ignore[attr-defined]
    optimizer = {"state": state, "param_groups": saved}
    folder.mkdir()
    torch.save({"module": module, "buffer_names": [], "optimizer": optimizer}, folder / "mp_rank_00_model_states.pt")
    return folder


SHAPES = {"a.weight": (3, 3), "a.bias": (3,), "b.weight": (3, 3), "b.bias": (3,)}


def test_without_zero_groups_of_matrices_and_vectors_are_told_apart(tmp_path: Path) -> None:
    groups: list[dict[str, object]] = [{"names": ["a.weight", "b.weight"]}, {"names": ["a.bias", "b.bias"]}]

    checkpoint = ZeroCheckpoint(_zero0(tmp_path / "c", groups, SHAPES))

    assert checkpoint.names == tuple(SHAPES) and checkpoint.optimizer_step == 2
    for i, name in enumerate(SHAPES):
        assert set(checkpoint.read("exp_avg", name)) == {i + 10.0}


def test_without_zero_ambiguous_groups_need_names(tmp_path: Path) -> None:
    groups: list[dict[str, object]] = [{"names": ["b.weight", "b.bias"]}, {"names": ["a.weight", "a.bias"]}]

    with pytest.raises(UserError, match=r'could be split in several ways.*"parameter_names"'):
        ZeroCheckpoint(_zero0(tmp_path / "unnamed", groups, SHAPES))
    checkpoint = ZeroCheckpoint(_zero0(tmp_path / "named", groups, SHAPES, key="parameter_names"))
    for i, name in enumerate(SHAPES):
        assert set(checkpoint.read("exp_avg", name)) == {i + 10.0}


_MEASURE = """
import sys
from pathlib import Path
from stacking.state.consolidate import consolidate

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

before = resident()
consolidate(Path(sys.argv[1]), Path(sys.argv[2]))
print(before, resident(), "torch" in sys.modules or "deepspeed" in sys.modules)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """A checkpoint of 400 MB, then one of 100 MB; torch is not even imported."""
    grown = {}
    for megabytes in (100, 400):
        layer = (1024, megabytes * 1024 // 12 // 4)
        folder = write_checkpoint(tmp_path / str(megabytes), [{f"layers.{i}.w": layer for i in range(4)}])
        command = [sys.executable, "-c", _MEASURE, str(folder), str(tmp_path / f"state-{megabytes}")]
        output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        before, after, heavy = output.split()
        grown[megabytes] = float(after) - float(before)
        assert heavy == "False"
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / f"state-{megabytes}")

    assert grown[400] < 100
    assert abs(grown[400] - grown[100]) < 20


def test_groups_of_the_helper_cut_through_parameters() -> None:
    """Guards the tests above: with 2 to 8 ranks some partition must start inside a parameter."""
    sizes = [sum(torch.Size(shape).numel() for shape in group.values()) for group in GROUPS]
    assert sizes == [27, 4]


@pytest.mark.parametrize("content", ["[]", "0", '{"model": 3}', '{"model": {"layers": "many"}}', "{"])
def test_invalid_progress_is_named(tmp_path: Path, content: str) -> None:
    folder = write_checkpoint(tmp_path / "c")
    (folder / "progress.json").write_text(content)
    if content.startswith('{"'):
        write_sealed(folder / "progress.json", json.loads(content))
    seal_folder(folder, {})
    with pytest.raises(DamagedFile, match=r"progress\.json: (is not|does not describe a model: model)"):
        ZeroCheckpoint(folder)


def test_a_lone_surrogate_is_preserved(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c")
    write_sealed(folder / "progress.json", {"\ud880": "\udc80 ü"})
    seal_folder(folder, {})
    assert consolidate(folder, tmp_path / "state").progress == {"\ud880": "\udc80 ü"}
