"""Layers of different ages: each counts its own updates for Adam's bias correction, in every engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stacking.growth.apply import grow
from stacking.state.consolidate import consolidate
from stacking.state.format import MOMENTS, WEIGHTS, State, step_of
from tests.state.ranks import run_ranks
from tests.state.test_matrix import ENGINES, WORKER

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

torch = pytest.importorskip("torch")
pytest.importorskip("deepspeed")

TOPOLOGIES = {
    f"{name}-x{ranks}": ({"precision": "fp32", "ages": True, "model": {"layers": 4}, **engine}, ranks)
    for name, engine in ENGINES.items()
    for ranks in (1, 2)
}
BEGUN, STOPPED, DONE = 3, 5, 6
"""Updates of the shallow model, and those after which the deep one is saved."""


class Ages:
    """A shallow model's state, the one grown from it, and the result of each engine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shallow = {"zero": 2, "precision": "fp32", "named": True, "steps": [0, BEGUN], "save": str(folder / "shallow")}
        self._launch(1, [shallow])
        self.shallow = consolidate(folder / "shallow", folder / "states" / "shallow")
        self.grown = grow(self.shallow, folder / "states" / "grown", 4, "interleave", "keep-old", share=True)
        for ranks in (1, 2):
            begun = [("straight", DONE), ("stopped", STOPPED)]
            self._launch(
                ranks, [self._job(what, t, self.grown.path, BEGUN, n) for t in _on(ranks) for what, n in begun]
            )
            self._launch(ranks, [self._job("resumed", t, folder / f"{t}-stopped", STOPPED, DONE) for t in _on(ranks)])

    def state(self, topology: str, what: str) -> State:
        place = self.folder / "states" / f"{topology}-{what}"
        return State(place) if place.exists() else consolidate(self.folder / f"{topology}-{what}", place)

    def _job(self, what: str, topology: str, source: Path, first: int, last: int) -> dict[str, Any]:
        save = str(self.folder / f"{topology}-{what}")
        return {**TOPOLOGIES[topology][0], "load": str(source), "steps": [first, last], "save": save}

    def _launch(self, ranks: int, jobs: list[dict[str, Any]]) -> None:
        plan = self.folder / "jobs.json"
        plan.write_text(json.dumps(jobs))
        run_ranks(ranks, WORKER, [plan, "--no-compiling"])


def _on(ranks: int) -> list[str]:
    return [topology for topology, (_, size) in TOPOLOGIES.items() if size == ranks]


@pytest.fixture(scope="module")
def ages(tmp_path_factory: pytest.TempPathFactory) -> Ages:
    return Ages(tmp_path_factory.mktemp("ages"))


def counts(state: State) -> list[int]:
    """The step counts of the four layers and of everything outside layers."""
    return [step_of(state, f"layers.{i}.up.weight") for i in range(4)] + [step_of(state, "tokens.weight")]


@pytest.fixture(scope="module")
def reference(ages: Ages) -> dict[str, np.ndarray]:
    """One process, plain torch AdamW, one step count per parameter."""
    from tests.state.worker import BATCH, Tiny

    model = Tiny(layers=4)
    named = dict(model.named_parameters())
    decayed = [{"params": [p], "weight_decay": 0.01 * (p.ndim > 1)} for p in named.values()]
    adam = torch.optim.AdamW(decayed, lr=0.01, betas=(0.9, 0.98))
    for name, parameter in named.items():
        values = {k: torch.from_numpy(ages.grown.read(k, name)).view(parameter.shape) for k in (WEIGHTS, *MOMENTS)}
        parameter.data.copy_(values.pop(WEIGHTS))
        adam.state[parameter] = {"step": torch.tensor(float(step_of(ages.grown, name))), **values}
    for step in range(BEGUN, DONE):
        adam.zero_grad()
        ids = torch.randint(0, 13, (BATCH, 5), generator=torch.Generator().manual_seed(step))
        model(ids.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
    return {name: parameter.detach().numpy().ravel() for name, parameter in named.items()}


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_every_layer_counts_its_own_updates(ages: Ages, topology: str) -> None:
    assert counts(ages.grown) == [BEGUN, 0, BEGUN, 0, BEGUN]
    assert counts(ages.state(topology, "stopped")) == [STOPPED, STOPPED - BEGUN] * 2 + [STOPPED]
    assert counts(ages.state(topology, "straight")) == [DONE, DONE - BEGUN] * 2 + [DONE]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_every_engine_updates_like_torchs_own_adam(ages: Ages, reference: dict[str, np.ndarray], topology: str) -> None:
    state = ages.state(topology, "straight")

    for name, expected in reference.items():
        np.testing.assert_allclose(state.read(WEIGHTS, name), expected, rtol=0, atol=3e-5, err_msg=name)
        moved = np.abs(expected - ages.grown.read(WEIGHTS, name)).max()
        assert moved > 1e-3, name  # far more than the tolerance


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_restart_changes_no_bit(ages: Ages, topology: str) -> None:
    assert ages.state(topology, "resumed").digest == ages.state(topology, "straight").digest
    assert counts(ages.state(topology, "resumed")) == counts(ages.state(topology, "straight"))


def test_one_group_for_layers_of_different_ages_is_refused(ages: Ages) -> None:
    job = {**TOPOLOGIES["zero2-x1"][0], "ages": False, "load": str(ages.grown.path), "steps": [0, 0]}
    (ages.folder / "refused.json").write_text(json.dumps([{**job, "save": str(ages.folder / "refused")}]))

    with pytest.raises(AssertionError, match="holds parameters after 0 and after 3 updates"):
        run_ranks(1, WORKER, [ages.folder / "refused.json", "--no-compiling"])
