"""The roofline of the benchmark's cases. What it rests on is assumed; these tests are about its arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from stacking.hardware.presets import DEVICE_CLASSES
from stacking.model.size import executed_flops
from tools.benchmarks.gpu_cases import CASES
from tools.null_gpu.roofline import CARDS, Assumption, Estimate, Launches, Row, as_markdown, rows

PAGE = Path(__file__).parents[2] / "docs" / "gpu.md"


@pytest.fixture(scope="module")
def row() -> Callable[[str, str], Row]:
    return lambda case, card: next(rows([case], [card]))


def test_a_step_takes_as_long_as_the_device_or_the_host() -> None:
    assert Estimate(matrices=3, attention=1, memory=2, optimizer=1, host=6).seconds == 7
    assert Estimate(matrices=3, attention=1, memory=2, optimizer=1, host=8).seconds == 8


def test_launches_lie_on_the_line_through_both_depths() -> None:
    assert [Launches(300, 1200).at(layers) for layers in (3, 6, 12, 24)] == [300, 600, 1200, 2400]


def test_the_hopeful_end_is_faster_in_every_part_and_below_the_peak(row: Callable[[str, str], Row]) -> None:
    found = row("base-128-3", "h100")
    slow, fast = found.estimate(hopeful=False), found.estimate(hopeful=True)
    assert all(high < low for high, low in zip(fast, slow, strict=True))
    assert 0 < found.mfu[0] < found.mfu[1] < 1


def test_a_card_that_reaches_its_peaks_is_bound_by_its_arithmetic(
    row: Callable[[str, str], Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    all_of_it = Assumption(1, 1, "")
    ideal = replace(CARDS["a100"], matrices=all_of_it, attention=all_of_it, launches=Launches(0, 0))
    monkeypatch.setitem(CARDS, "a100", ideal)  # type: ignore[arg-type]
    found = row("base-128-3", "a100")
    estimate = found.estimate(hopeful=True)
    flops = executed_flops(found.plan.model.with_layers(3), 128, 0.15 * 128)
    recomputed = estimate.attention / 7
    assert estimate.matrices + estimate.attention - recomputed == pytest.approx(512 * flops / 312e12)
    assert estimate.host == 0


def test_the_micro_batch_fits_the_card(row: Callable[[str, str], Row]) -> None:
    stage = row("large-128", "p40").stage
    assert stage.memory_per_rank <= DEVICE_CLASSES["p40"].memory and stage.micro_batch < 256


def test_the_table_has_a_line_for_every_case_and_says_what_it_rests_on(row: Callable[[str, str], Row]) -> None:
    text = as_markdown([row("base-128-3", "h200"), row("base-128", "h200")])
    assert text.count("| h200 |") == 2 and "3 layers to 12 (aim: at least 1 : 3.3): h200 1 : " in text
    assert "Dao-AILab/flash-attention#2688" in text


def test_the_page_says_that_no_card_was_measured_and_holds_every_case() -> None:
    text = PAGE.read_text()
    assert "no card has been measured" in text and "python -m tools.null_gpu.roofline" in text
    assert all(case.title in text for case in CASES.values() if not case.wanted.ragged)
