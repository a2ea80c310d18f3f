"""Each way to compute something gives what plain PyTorch gives."""

from __future__ import annotations

import logging
import math
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stacking.hardware.presets import DEVICE_CLASSES
from stacking.model import kernels as table
from stacking.model.attention import explicit, sdpa
from stacking.model.bert import build
from stacking.model.config import ModelConfig
from stacking.model.cross_entropy import apex_cross_entropy, summed_cross_entropy
from stacking.model.dropout import add_dropout_bits, dropout_bits
from stacking.model.kernels import (
    ATTENTION,
    CROSS_ENTROPY,
    DECODERS,
    DROPOUT,
    KERNELS,
    LAMBS,
    LAYERS,
    NORMS,
    PLAIN,
    TRIALS,
    Kernels,
    kernels_for,
    use,
)
from stacking.model.norms import apex_norm, torch_norm
from stacking.model.tokens import unpadded_tokens
from stacking.train.loader import with_padding, without_padding
from tests import apex_stand_in
from tests.model.conftest import CONFIGS, Inputs, as_batch
from tests.model.test_tokens import batch
from tests.unpadding import unpad

RAGGED = [19, 3, 18, 7, 1, 8]
CPU = torch.device("cpu")
ANYWHERE = [name for name, row in KERNELS.items() if row.attention != "varlen_flash"]
"""Rows whose kernels run here; flash attention for many lengths needs a GPU of sm_80 or newer."""


def one_by_one(query: Tensor, key: Tensor, value: Tensor, queries: list[int], keys: list[int]) -> Tensor:
    """Attention of each sequence by itself."""
    parts = zip(query.split(queries), key.split(keys), value.split(keys), strict=True)
    return torch.cat(
        [
            F.scaled_dot_product_attention(*(rows.transpose(0, 1) for rows in part)).transpose(0, 1)  # type: ignore[arg-type]
            for part in parts
        ]
    )


@pytest.mark.parametrize("lengths", [RAGGED, [16] * 4, [5]], ids=["ragged", "of one length", "alone"])
@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("kernel", [sdpa, explicit])
def test_tokens_attend_to_their_own_sequence(kernel: table.Kernel, grouped: bool, lengths: list[int]) -> None:
    layout = unpadded_tokens(batch(lengths), grouped).layout
    parts = torch.randn(3, sum(lengths), 2, 8, dtype=torch.float64, requires_grad=True)
    found, expected = kernel(*parts, layout, layout, 0.0), one_by_one(*parts, lengths, lengths)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad((out * weights).sum(), parts)[0] for out in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("lengths", [RAGGED, [16] * 4])
def test_some_queries_attend_as_they_do_among_all(lengths: list[int]) -> None:
    tokens = unpadded_tokens(batch(lengths))
    query, key, value = torch.randn(3, sum(lengths), 2, 8)
    everything = sdpa(query, key, value, tokens.layout, tokens.layout, 0.0)
    some = sdpa(query[tokens.needed], key, value, tokens.needed_layout, tokens.layout, 0.0)
    torch.testing.assert_close(some, everything[tokens.needed])


def test_explicit_attention_drops_probabilities_and_keeps_their_expectation() -> None:
    tokens = unpadded_tokens(batch(RAGGED))
    query, key, value = torch.randn(3, sum(RAGGED), 2, 8)
    arguments = (query, key, value, tokens.layout, tokens.layout)
    torch.manual_seed(0)
    drawn = torch.stack([explicit(*arguments, 0.1) for _ in range(600)])
    assert not torch.equal(drawn[0], drawn[1])
    torch.testing.assert_close(drawn.mean(0), sdpa(*arguments, 0.0), rtol=0, atol=0.12)


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_dropout_by_bits_drops_at_its_rate_and_scales_the_rest(probability: float) -> None:
    torch.manual_seed(0)
    dropped = dropout_bits(torch.ones(500, 2001), probability)
    rate = (dropped == 0).double().mean().item()
    spread = 5 * math.sqrt(probability * (1 - probability) / dropped.numel())
    assert rate == pytest.approx(probability, abs=spread)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - probability)], rel=1e-4)


def test_dropout_by_bits_follows_torchs_seed() -> None:
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return dropout_bits(torch.ones(1001), 0.5)

    assert torch.equal(draw(3), draw(3)) and not torch.equal(draw(3), draw(4))


def test_elements_are_dropped_independently_of_their_neighbours() -> None:
    torch.manual_seed(0)
    kept = (dropout_bits(torch.ones(1_000_000), 0.5) > 0).double() - 0.5
    for distance in range(1, 9):
        assert (kept[:-distance] * kept[distance:]).mean().abs() < 5 * 0.25 / 1000


def test_a_residual_sum_drops_what_dropout_drops() -> None:
    residual, hidden = torch.randn(2, 64, 32)
    torch.manual_seed(0)
    expected = residual + dropout_bits(hidden, 0.1)
    torch.manual_seed(0)
    torch.testing.assert_close(add_dropout_bits(residual, hidden, 0.1), expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("decoder", DECODERS)
def test_vocabulary_scores_and_their_gradients_do_not_depend_on_the_layout(decoder: str, bias: bool) -> None:
    hidden, weight = torch.randn(7, 8, dtype=torch.float64), torch.randn(101, 8, dtype=torch.float64)
    labels, parts = torch.randint(0, 101, (7,)), [hidden, weight, *([torch.randn(101).double()] if bias else [])]
    results = []
    for decode in (DECODERS[decoder], F.linear):
        leaves = [part.clone().requires_grad_() for part in parts]
        scores = decode(*leaves, *([] if bias else [None]))
        loss = F.cross_entropy(scores, labels) + scores.square().mean()
        results.append([scores.detach(), *torch.autograd.grad(loss, leaves)])
    assert_same(*results)


@pytest.mark.parametrize("by_column", [True, False])
@pytest.mark.parametrize("chunk", [1, 250, 1 << 24], ids=["a row", "a few rows", "everything"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_cross_entropy_in_chunks_is_torchs(
    chunk: int, dtype: torch.dtype, tolerance: float, by_column: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stacking.model.cross_entropy._CHUNK", chunk)
    values, labels = torch.randn(9, 101).mul(4).to(dtype), torch.randint(0, 101, (9,))
    logits = [values.clone().requires_grad_() for _ in range(2)]
    computed = (logits[0].t().contiguous() * 1).t() if by_column else logits[0] * 1
    losses = [
        summed_cross_entropy(computed, labels),
        F.cross_entropy(logits[1].float(), labels, reduction="sum"),
    ]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-5)
    for loss in losses:
        (loss * 0.3).backward()
    torch.testing.assert_close(logits[0].grad, logits[1].grad, rtol=tolerance, atol=tolerance)


def test_cross_entropy_of_nothing_is_zero() -> None:
    logits = torch.randn(0, 101, requires_grad=True)
    loss = summed_cross_entropy(logits * 1, torch.empty(0, dtype=torch.int64))
    loss.backward()
    assert loss == 0 and logits.grad.shape == (0, 101)


def losses_and_gradients(model: torch.nn.Module, *arguments: object) -> list[Tensor]:
    mlm, nsp = model(*arguments)
    names = [name for name, _ in model.named_parameters()]
    gradients = torch.autograd.grad(mlm + nsp, [p for _, p in model.named_parameters()])
    return [mlm.detach(), nsp.detach(), *(g for _, g in sorted(zip(names, gradients, strict=True)))]


def without_dropout(config: ModelConfig) -> torch.nn.Module:
    torch.manual_seed(1)
    return build(config.model_copy(update={"dropout": 0.0, "attention_dropout": 0.0})).double()


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.fixture
def apex(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    return apex_stand_in.install(monkeypatch)


@pytest.mark.parametrize("row", ANYWHERE)
def test_unpadded_losses_and_gradients_are_those_of_padded_sequences(
    config: ModelConfig, inputs: Inputs, row: str
) -> None:
    model = without_dropout(config)
    padded = as_batch(inputs)
    expected = losses_and_gradients(model, *with_padding(padded, CPU).inputs)
    use(model, replace(KERNELS[row], norm="torch", cross_entropy="in_place"))  # apex needs a GPU
    assert_same(losses_and_gradients(model, *without_padding(unpad(padded), CPU).inputs), expected)


def test_the_last_layer_gives_the_needed_tokens_what_it_gives_them_among_all(
    config: ModelConfig, inputs: Inputs
) -> None:
    model = without_dropout(config)
    some, everything = model.encode_needed(inputs.tokens), model.encode(inputs.tokens)
    torch.testing.assert_close(some, everything[inputs.tokens.needed], rtol=1e-9, atol=1e-9)


def test_recomputed_layers_give_the_same_losses_and_gradients_with_dropout(config: ModelConfig, inputs: Inputs) -> None:
    model = build(config).double()
    use(model, KERNELS["cpu"])
    results = []
    for model.recompute in (False, True):
        torch.manual_seed(7)
        results.append(losses_and_gradients(model, *inputs.arguments))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["post_ln", "modern"])
def test_compiled_layers_give_the_same_losses_and_gradients(variant: str) -> None:
    model = without_dropout(CONFIGS[variant]).float()
    use(model, KERNELS["cpu"])
    drawn = [without_padding(batch(lengths), CPU).inputs for lengths in ([16] * 3, RAGGED)]
    expected = [losses_and_gradients(model, *inputs) for inputs in drawn]
    for layer in model.layers:  # type: ignore[union-attr]
        layer.compile()
    for inputs, results in zip(drawn, expected, strict=True):
        for one, other in zip(losses_and_gradients(model, *inputs), results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("row", [*KERNELS.values(), PLAIN], ids=[*KERNELS, "plain"])
def test_rows_name_kernels_that_there_are(row: Kernels) -> None:
    assert row.attention in ATTENTION and row.dropout in DROPOUT
    assert row.decoder in DECODERS and row.cross_entropy in CROSS_ENTROPY and row.norm in NORMS
    assert row.lamb in LAMBS and row.layers in LAYERS
    assert row.why


def test_trials_replace_kernels_that_there_are_by_others_that_need_none() -> None:
    tried = {(trial.operation, trial.name) for trial in TRIALS}
    for trial in TRIALS:
        assert {trial.name, trial.instead} <= set(trial.kernels)
        assert (trial.operation, trial.instead) not in tried


def test_every_part_of_a_model_takes_the_kernels(config: ModelConfig) -> None:
    model = build(config)
    use(model, KERNELS["cpu"])
    assert {m.kernels for m in model.modules() if hasattr(m, "kernels")} == {KERNELS["cpu"]}


@pytest.mark.parametrize(
    ("capability", "row"),
    [
        ((6, 1), "pascal"),
        ((7, 0), "volta"),
        ((7, 5), "volta"),
        ((8, 0), "ampere"),
        ((9, 0), "ampere"),
        ((12, 0), "ampere"),
    ],
)
def test_gpus_get_the_row_of_their_generation(
    capability: tuple[int, int], row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # There is no GPU here: the capability is made up.
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert table.generation(SimpleNamespace(type="cuda")) == row  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "row"),
    [("cpu", "cpu"), ("p40", "pascal"), ("v100", "volta"), ("a100", "ampere"), ("h100", "ampere"), ("h200", "ampere")],
)
def test_the_table_agrees_with_what_is_planned_for_the_device(device: str, row: str) -> None:
    planned = DEVICE_CLASSES[device]
    assert set(KERNELS[row].precisions) == {"fp32", "fp16", "bf16"} - planned.unfit.keys()


def test_nothing_is_compiled_on_pascal_and_bf16_is_not_for_volta() -> None:
    assert DEVICE_CLASSES["p40"].compiled == "refused"
    assert "bf16" not in KERNELS["volta"].precisions


def test_an_attention_kernel_that_refuses_is_replaced_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    # On a CPU, flash attention for many lengths refuses, as it does on a GPU that it was not built for.
    monkeypatch.setattr(table, "generation", lambda _: "ampere")
    chosen = kernels_for(CPU, torch.bfloat16, 64, 0.1)
    assert chosen.attention == "sdpa" and chosen.grouped
    assert "attention: sdpa instead of varlen_flash: " in chosen.why
    assert "16 bits" in kernels_for(CPU, torch.float32, 64, 0.1).why


@pytest.mark.slow
def test_layers_are_compiled_where_the_compiler_agrees_with_eager_layers() -> None:
    chosen = kernels_for(CPU, torch.float32, 64, 0.1, compiled=True)
    assert (chosen.layers, chosen.grouped, chosen.why) == ("compiled", False, KERNELS["cpu"].why)


def test_layers_stay_eager_where_the_compiler_fails(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def compiler(layer: table.Kernel) -> table.Kernel:
        # As Triton does where CUDA's assembler has no code for the card.
        print("thousands of lines of PTX")
        logging.getLogger("torch._inductor").error("and where they come from")
        raise RuntimeError("PTXASError: internal error\n`ptxas` stderr:\nptxas fatal: sm_70 is not defined")

    monkeypatch.setitem(LAYERS, "compiled", compiler)  # type: ignore[arg-type]
    chosen = kernels_for(CPU, torch.float32, 64, 0.1, compiled=True)
    assert (chosen.layers, chosen.grouped) == ("eager", True)
    assert chosen.why.endswith("; layers: eager instead of compiled: ptxas fatal: sm_70 is not defined")
    assert capfd.readouterr() == ("", "")


def test_layers_stay_eager_where_compiled_ones_compute_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYERS, "compiled", lambda layer: lambda *inputs: 1.01 * layer(*inputs))  # type: ignore[arg-type]
    assert (
        "eager instead of compiled: its results differ" in kernels_for(CPU, torch.float32, 64, 0.1, compiled=True).why
    )


@pytest.mark.usefixtures("apex")
def test_the_compiler_fuses_norms_that_apex_computes_elsewhere() -> None:
    hidden, weight = torch.randn(4, 8), torch.ones(8)
    compiled = torch.compile(apex_norm, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(hidden, weight, weight, 1e-12), torch_norm(hidden, weight, weight, 1e-12))


def on_volta(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype = torch.float32) -> Kernels:
    monkeypatch.setattr(table, "generation", lambda _: "volta")
    return kernels_for(CPU, dtype, 64, 0.1, lamb=True)


@pytest.fixture
def xentropy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Volta's row with the kernel that no device has yet."""
    row = replace(KERNELS["volta"], cross_entropy="apex")
    monkeypatch.setattr(table, "KERNELS", {**KERNELS, "volta": row})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.usefixtures("apex")
def test_apex_is_chosen_where_it_agrees_with_torch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_volta(monkeypatch, dtype) == KERNELS["volta"]
    assert {KERNELS["volta"].norm, KERNELS["volta"].lamb} == {"apex"}


def test_lamb_is_tried_only_for_a_recipe_that_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apex", None)
    monkeypatch.setattr(table, "generation", lambda _: "ampere")
    assert "lamb" not in kernels_for(CPU, torch.float32, 64, 0.1).why
    assert "lamb: torch instead of apex" in kernels_for(CPU, torch.float32, 64, 0.1, lamb=True).why


def test_a_machine_without_triton_keeps_the_cross_entropy_in_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "stacking.model.triton_cross_entropy", raising=False)
    monkeypatch.setattr(table, "generation", lambda _: "ampere")
    chosen = kernels_for(CPU, torch.bfloat16, 64, 0.1)
    assert (KERNELS["ampere"].cross_entropy, chosen.cross_entropy) == ("triton", "in_place")
    assert "cross entropy: in_place instead of triton: import of triton halted" in chosen.why


def test_a_machine_without_apex_uses_torch_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apex", None)
    chosen = on_volta(monkeypatch)
    assert (chosen.norm, chosen.cross_entropy, chosen.lamb, chosen.attention) == ("torch", "in_place", "torch", "sdpa")
    assert chosen.why.startswith(KERNELS["volta"].why)
    assert "; norm: torch instead of apex: " in chosen.why and "apex" in chosen.why.split(": ")[-1]


def test_the_apex_of_the_package_index_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))  # it has none of these modules
    chosen = on_volta(monkeypatch)
    assert (chosen.norm, chosen.cross_entropy) == ("torch", "in_place")
    assert "'apex' is not a package" in chosen.why


@pytest.mark.usefixtures("xentropy")
def test_an_apex_whose_kernels_fail_is_not_used(apex: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no kernel image is available\nfor execution on the device")

    monkeypatch.setattr(apex["apex.normalization.fused_layer_norm"], "fused_layer_norm", broken)
    monkeypatch.delattr(apex["apex.contrib.xentropy"], "SoftmaxCrossEntropyLoss")
    chosen = on_volta(monkeypatch)
    assert "norm: torch instead of apex: no kernel image is available; cross entropy: in_place instead" in chosen.why
    assert "has no attribute 'SoftmaxCrossEntropyLoss'" in chosen.why


@pytest.mark.usefixtures("xentropy")
def test_an_apex_with_other_gradients_is_not_used(apex: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    def without_gradient_of_bias(hidden: Tensor, weight: Tensor, bias: Tensor, *rest: object) -> Tensor:
        return apex_stand_in.fused_layer_norm_affine(hidden, weight, bias.detach() + 0 * bias, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(
        apex["apex.normalization.fused_layer_norm"], "fused_layer_norm_affine", without_gradient_of_bias
    )
    chosen = on_volta(monkeypatch)
    assert (chosen.norm, chosen.cross_entropy) == ("torch", "apex")
    assert chosen.why.endswith("norm: torch instead of apex: its results differ")


@pytest.mark.usefixtures("xentropy")
def test_a_cross_entropy_that_takes_a_label_for_padding_is_not_used(
    apex: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    def apply(logits: Tensor, labels: Tensor, smoothing: float, _: int, wide: bool) -> Tensor:
        return apex_stand_in.SoftmaxCrossEntropyLoss.apply(logits, labels, smoothing, 0, wide)

    monkeypatch.setattr(apex["apex.contrib.xentropy"], "SoftmaxCrossEntropyLoss", SimpleNamespace(apply=apply))
    assert on_volta(monkeypatch).why.endswith("cross entropy: in_place instead of apex: its results differ")


def test_a_lamb_that_scales_vectors_too_is_not_used(
    apex: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nvlamb(apex_stand_in.FusedLAMB):
        def _update(self, p: Tensor, *, weight_decay: float, **group: object) -> None:  # type: ignore[override]
            super()._update(p, weight_decay=weight_decay or 1e-12, **group)  # type: ignore[arg-type]

    monkeypatch.setattr(apex["apex.optimizers"], "FusedLAMB", Nvlamb)
    chosen = on_volta(monkeypatch)
    assert (chosen.lamb, chosen.norm) == ("torch", "apex")
    assert chosen.why.endswith("lamb: torch instead of apex: its results differ")


def test_a_trial_leaves_torchs_generator_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_rng_state()
    on_volta(monkeypatch)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("apex")
def test_a_model_with_apex_gives_torchs_losses_and_gradients(config: ModelConfig, inputs: Inputs) -> None:
    model = without_dropout(config).float()
    expected = losses_and_gradients(model, *inputs.arguments)
    use(model, replace(PLAIN, norm="apex", cross_entropy="apex"))
    for one, other in zip(losses_and_gradients(model, *inputs.arguments), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("apex")
def test_apex_is_not_asked_for_the_cross_entropy_of_nothing() -> None:
    logits = torch.randn(0, 101, requires_grad=True)
    loss = apex_cross_entropy(logits * 1, torch.empty(0, dtype=torch.int64))
    loss.backward()
    assert loss == 0 and logits.grad.shape == (0, 101)
