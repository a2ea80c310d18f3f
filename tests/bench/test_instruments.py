"""The instruments: what counts as which time, whose memory is whose, which kernels are detected."""

from __future__ import annotations

import time
from types import SimpleNamespace

import deepspeed.comm as deepspeed_comm
import pytest
import torch
import torch.nn.functional as F

from stacking.bench.instruments import Marks, MemoryMeter, Stopwatch, named, observed, operators_of

CPU = torch.device("cpu")


def test_collectives_inside_a_section_count_as_communication(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = SimpleNamespace(wait=lambda: time.sleep(0.03))
    backend = type("Backend", (), {"all_reduce": lambda self, tensor: handle})()
    monkeypatch.setattr(deepspeed_comm.comm, "cdb", backend)
    watch = Stopwatch(CPU)
    with watch.watching_collectives(), watch.section("backward"):
        time.sleep(0.02)
        backend.all_reduce(torch.ones(1))
    assert watch.seconds["communication"] == pytest.approx(0.03, abs=0.015)
    assert watch.seconds["backward"] == pytest.approx(0.02, abs=0.015)
    assert watch.seconds["forward"] == 0
    assert "all_reduce" not in vars(backend)


def test_a_contenders_memory_is_what_it_keeps_plus_the_peak_of_a_window() -> None:
    others = torch.ones(4 << 20)
    meter = MemoryMeter(CPU)
    kept = torch.ones(8 << 20)
    meter.ready()
    meter.start(exact=True)
    passing = torch.ones(16 << 20)
    del passing
    meter.stop()
    assert meter.most == pytest.approx((8 + 16) << 22, rel=0.1)
    assert len(others) + len(kept) == 12 << 20


@pytest.mark.parametrize(("dropout", "kernel"), [(0.0, "flash for CPU"), (0.1, "plain (unfused)")])
def test_the_attention_kernel_that_ran_is_detected(dropout: float, kernel: str) -> None:
    query = torch.randn(2, 2, 16, 32)
    names, table = operators_of(lambda: F.scaled_dot_product_attention(query, query, query, dropout_p=dropout), CPU)
    assert observed(names) == {"attention": kernel}
    assert "scaled_dot_product" in table


def test_a_layer_norm_is_detected_only_where_there_is_one() -> None:
    names, _ = operators_of(lambda: F.layer_norm(torch.randn(4, 8), (8,)), CPU)
    assert observed(names) == {"layer norm": "torch"}
    assert observed(operators_of(lambda: torch.ones(2) + 1, CPU)[0]) == {}


def test_marks_are_as_far_apart_as_the_time_between_them() -> None:
    marks = Marks(CPU)
    time.sleep(0.02)
    marks.mark()
    marks.mark()
    first, second = marks.seconds()
    assert first >= 0.02 > second


def test_the_kernel_that_ran_is_reported_next_to_the_chosen_one() -> None:
    chosen, ran = {"attention": "sdpa", "dropout": "torch"}, {"attention": "cuDNN", "layer norm": "torch"}
    assert named(chosen, ran) == {"attention": "sdpa: cuDNN", "dropout": "torch", "layer norm": "torch"}
    assert named({"attention": "flash"}, {"attention": "flash"}) == {"attention": "flash"}
