"""The metrics of GLUE, from scikit-learn and SciPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec

import numpy as np

from stacking.errors import UserError
from stacking.glue.tasks import GlueTask

Metric = Callable[[np.ndarray, np.ndarray], float]
"""Maps labels [N] and predictions [N] to a score, at most 1."""


def _accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predicted))


def _f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, zero_division=0.0))


def _matthews(labels: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predicted))


def _pearson(labels: np.ndarray, predicted: np.ndarray) -> float:
    from scipy.stats import pearsonr

    return _correlation(lambda: pearsonr(labels, predicted).statistic, labels, predicted)


def _spearman(labels: np.ndarray, predicted: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return _correlation(lambda: spearmanr(labels, predicted).statistic, labels, predicted)


def _correlation(compute: Callable[[], float], labels: np.ndarray, predicted: np.ndarray) -> float:
    """Returns 0 where one side is constant or not finite, for which a correlation is not defined."""
    if not np.isfinite(predicted).all() or np.ptp(labels) == 0 or np.ptp(predicted) == 0:
        return 0.0
    return float(compute())


METRICS: dict[str, Metric] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
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


def score(task: GlueTask, labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Returns the task's metrics for predictions [N] against labels [N]."""
    return {name: METRICS[name](labels, predicted) for name in task.metrics}


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
