"""Growth that claims to preserve the function: the grown model computes what the shallow one did."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from stacking.growth.operators import layer_sources, listed_sources
from stacking.model.config import ModelConfig
from stacking.state.layers import LayerSource, origins

torch = pytest.importorskip("torch")
from stacking.model.bert import build  # noqa: E402

PRESERVING = {
    "identity": layer_sources("identity", 3, 7),
    "block-expansion": layer_sources("block-expansion", 3, 5),
    "a list of silent copies": listed_sources(["0", "0 silent", "1", "2 silent", "2"]),
}


def models(variant: str, sources: Sequence[LayerSource]) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A model of three layers with random weights, scales and biases, and the one grown from it."""
    torch.manual_seed(0)
    config = ModelConfig(
        variant=variant, layers=3, hidden=8, heads=2, intermediate=16, vocabulary=20, max_positions=16, dropout=0.0
    )
    shallow, deep = build(config).eval(), build(config.with_layers(len(sources))).eval()
    with torch.no_grad():
        for parameter in shallow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        old = dict(shallow.named_parameters())
        new = dict(deep.named_parameters())
        for name, origin in origins(old, tuple(sources)).items():
            new[name].copy_(torch.zeros_like(new[name]) if origin.zero else old[origin.name])
    return shallow, deep


def outputs_of(model: torch.nn.Module) -> torch.Tensor:
    """The scores of every word at every position of two sequences."""
    ids = torch.randint(0, 20, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        scores: torch.Tensor = model.logits(ids, torch.zeros_like(ids), torch.ones_like(ids))[0]
    return scores


@pytest.mark.parametrize("how", PRESERVING)
@pytest.mark.parametrize("variant", ["pre_ln", "macaron", "modern"])
def test_silent_pre_ln_layers_change_no_bit_of_the_output(how: str, variant: str) -> None:
    shallow, deep = models(variant, PRESERVING[how])

    assert torch.equal(outputs_of(shallow), outputs_of(deep))


@pytest.mark.parametrize("how", PRESERVING)
def test_silent_post_ln_layers_change_only_rounding_while_layer_norms_are_untrained(how: str) -> None:
    """Each silent layer normalises again, which has no effect on values that are already normalised."""
    shallow, deep = models("post_ln", PRESERVING[how])
    learned = outputs_of(deep) - outputs_of(shallow)
    for model in (shallow, deep):
        for name, parameter in model.named_parameters():
            if name.startswith("layers.") and "norm" in name:
                torch.nn.init.constant_(parameter, 1.0 if name.endswith("weight") else 0.0)

    torch.testing.assert_close(outputs_of(deep), outputs_of(shallow), rtol=1e-5, atol=1e-5)
    assert learned.abs().max() > 1e-3


@pytest.mark.parametrize("variant", ["pre_ln", "post_ln", "macaron", "modern"])
def test_plain_copies_change_the_function(variant: str) -> None:
    """Guards the tests above."""
    shallow, deep = models(variant, layer_sources("stack", 3, 6))

    assert (outputs_of(deep) - outputs_of(shallow)).abs().max() > 1e-3
