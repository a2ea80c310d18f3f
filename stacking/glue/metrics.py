"""Computes the metrics of GLUE with scikit-learn and SciPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from stacking.errors import UserError
from stacking.glue.tasks import GlueTask

Metric = Callable[[np.ndarray, np.ndarray], float]
"""Maps labels [N] and predictions [N] to a score, at most 1."""

NAMES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "matthews": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}


def require_libraries() -> None:
    """Checks that the libraries that compute the metrics are installed.

    Raises:
        UserError: one is not.
    """
    for module, package in (("sklearn", "scikit-learn"), ("scipy", "scipy")):
        if find_spec(module) is None:
            problem = "is not installed, and computes the metrics of GLUE"
            raise UserError(package, problem, "run `pip install 'stacking[glue]'`, or `pip install scikit-learn`")


def known_metrics() -> dict[str, Metric]:
    """Imports the libraries and returns all metrics by name."""
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    return {
        "accuracy": accuracy_score,
        "f1": partial(f1_score, zero_division=0.0),
        "matthews": matthews_corrcoef,
        "pearson": _where_defined(pearsonr),
        "spearman": _where_defined(spearmanr),
    }


def _where_defined(correlation: Callable[..., Any]) -> Metric:
    """Returns ``correlation`` with the value 0 where it is not defined: one side is constant or not finite."""

    def metric(labels: np.ndarray, predicted: np.ndarray) -> float:
        if not np.isfinite(predicted).all() or np.ptp(labels) == 0 or np.ptp(predicted) == 0:
            return 0.0
        return float(correlation(labels, predicted).statistic)

    return metric


def score(task: GlueTask, labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Returns the task's metrics for predictions [N] against labels [N]."""
    known = known_metrics()
    return {name: float(known[name](labels, predicted)) for name in task.metrics}


def majority(task: GlueTask, labels: np.ndarray) -> dict[str, float]:
    """Returns the metrics of always predicting the most frequent label; for scores, of a constant."""
    constant = 0.0 if task.is_regression else float(np.bincount(labels.astype(np.int64)).argmax())
    return score(task, labels, np.full(labels.shape, constant))


def has_failed(task: GlueTask, scores: Mapping[str, float], of_majority: Mapping[str, float]) -> bool:
    """Returns whether a run is no better than predicting the most frequent label (Mosbach et al., 2021).

    It is judged by the last metric of the task, which is accuracy where there are F1 and accuracy: a classifier that
    always says yes has a high F1.
    """
    decisive = task.metrics[-1]
    return not scores[decisive] > of_majority[decisive]
