"""Metrics against their textbook formulas, and which runs count as failed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.errors import UserError
from stacking.glue import metrics
from stacking.glue.metrics import has_failed, known_metrics, majority, require_libraries, score
from stacking.glue.tasks import TASKS

BITS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40)


def test_missing_libraries_give_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"scikit-learn: is not installed.*pip install 'stacking\[glue\]'"):
        require_libraries()


@pytest.mark.filterwarnings("ignore:A single label was found")
@given(pairs=BITS)
def test_binary_metrics_follow_their_formulas(pairs: list[tuple[int, int]]) -> None:
    pytest.importorskip("sklearn")
    labels, predicted = np.array(pairs, dtype=float).T
    hits, misses = (labels == 1) & (predicted == 1), (labels == 1) & (predicted == 0)
    tp, fn = int(hits.sum()), int(misses.sum())
    fp, tn = int(((labels == 0) & (predicted == 1)).sum()), int(((labels == 0) & (predicted == 0)).sum())
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    assert known_metrics()["accuracy"](labels, predicted) == pytest.approx((tp + tn) / len(pairs))
    assert known_metrics()["f1"](labels, predicted) == pytest.approx(2 * tp / max(2 * tp + fp + fn, 1))
    correlation = (tp * tn - fp * fn) / math.sqrt(product) if product else 0.0
    assert known_metrics()["matthews"](labels, predicted) == pytest.approx(correlation)


def test_correlations_follow_their_formulas() -> None:
    pytest.importorskip("scipy")
    labels, predicted = np.array([0.0, 1.5, 3.0, 5.0, 4.0]), np.array([0.1, 0.4, 9.0, 3.0, 2.0])
    assert known_metrics()["pearson"](labels, predicted) == pytest.approx(np.corrcoef(labels, predicted)[0, 1])
    ranks = [np.argsort(np.argsort(values)) for values in (labels, predicted)]
    assert known_metrics()["spearman"](labels, predicted) == pytest.approx(np.corrcoef(*ranks)[0, 1])


@pytest.mark.parametrize("predicted", [[2.0, 2.0, 2.0], [math.nan, 1.0, 2.0]], ids=["constant", "not a number"])
def test_an_undefined_correlation_is_zero(predicted: list[float]) -> None:
    pytest.importorskip("scipy")
    assert score(TASKS["STS-B"], np.array([1.0, 2.0, 3.0]), np.array(predicted)) == {"pearson": 0, "spearman": 0}


@pytest.mark.parametrize("name", TASKS)
def test_always_answering_the_majority_label_fails_and_the_truth_does_not(name: str) -> None:
    pytest.importorskip("sklearn")
    task = TASKS[name]
    labels = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    baseline = majority(task, labels)
    constant = np.ones(6)
    assert has_failed(task, score(task, labels, constant), baseline)
    assert not has_failed(task, score(task, labels, labels), baseline)


def test_a_high_f1_does_not_hide_a_failure() -> None:
    pytest.importorskip("sklearn")
    task, labels = TASKS["MRPC"], np.array([1.0, 1.0, 1.0, 0.0])
    scores = score(task, labels, np.ones(4))
    assert scores["f1"] > 0.85 and has_failed(task, scores, majority(task, labels))
