"""Defines the tasks of GLUE (Wang et al., 2019): files, columns, labels, metrics, submission files; a row per task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from stacking.config.reading import nearest
from stacking.errors import UserError


@dataclass(frozen=True)
class Held:
    """A development set, and the test set that belongs to it."""

    name: str
    """As in the paper's table, and the name of the submission file without its suffix."""
    dev: str = "dev"
    """Name of the TSV file without its suffix."""
    test: str = "test"
    dev_split: str = "validation"
    """Name of the split in `datasets`."""
    test_split: str = "test"


@dataclass(frozen=True)
class GlueTask:
    """One task: its data, what is predicted, and how that is scored."""

    name: str
    subset: str
    """Its name in the `glue` dataset of the Hugging Face Hub."""
    text: tuple[str, ...]
    """Columns of the TSV files with the sentence, or with the two sentences."""
    fields: tuple[str, ...]
    """The same columns in `datasets`."""
    label: str
    """Column of the TSV files; `datasets` calls it ``label``."""
    labels: tuple[str, ...]
    """Spelling of the labels in the TSV files, in the order of their numbers; empty: a score from 0 to 5."""
    metrics: tuple[str, ...]
    """Keys of `stacking.glue.metrics.known_metrics`, in the order of the paper's table."""
    seeds: int
    """Runs by default: six for small training sets and three for large ones, as in the paper."""
    held: tuple[Held, ...]
    without_header: tuple[str, ...] = ()
    """Columns of training and development files that have no header line."""
    in_average: bool = True

    @property
    def is_regression(self) -> bool:
        """Whether a score is predicted instead of a label."""
        return not self.labels

    @property
    def outputs(self) -> int:
        """The number of outputs: one for each label, or a single score."""
        return max(len(self.labels), 1)

    @property
    def is_pair(self) -> bool:
        """Whether an example has two sentences."""
        return len(self.text) == 2


_PAIR = ("sentence1", "sentence2")
_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_MNLI = (
    Held("MNLI-m", "dev_matched", "test_matched", "validation_matched", "test_matched"),
    Held("MNLI-mm", "dev_mismatched", "test_mismatched", "validation_mismatched", "test_mismatched"),
)

TASKS: dict[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask(
            "CoLA", "cola", ("sentence",), ("sentence",), "label", _BINARY, ("matthews",), 6, (Held("CoLA"),),
            without_header=("source", "label", "original_label", "sentence"),
        ),
        GlueTask("SST-2", "sst2", ("sentence",), ("sentence",), "label", _BINARY, ("accuracy",), 3, (Held("SST-2"),)),
        GlueTask(
            "MRPC", "mrpc", ("#1 String", "#2 String"), _PAIR, "Quality", _BINARY, ("f1", "accuracy"), 6,
            (Held("MRPC"),),
        ),
        GlueTask("STS-B", "stsb", _PAIR, _PAIR, "score", (), ("pearson", "spearman"), 6, (Held("STS-B"),)),
        GlueTask(
            "QQP", "qqp", ("question1", "question2"), ("question1", "question2"), "is_duplicate", _BINARY,
            ("f1", "accuracy"), 3, (Held("QQP"),),
        ),
        GlueTask(
            "MNLI", "mnli", _PAIR, ("premise", "hypothesis"), "gold_label",
            ("entailment", "neutral", "contradiction"), ("accuracy",), 3, _MNLI,
        ),
        GlueTask(
            "QNLI", "qnli", ("question", "sentence"), ("question", "sentence"), "label", _ENTAILMENT, ("accuracy",), 3,
            (Held("QNLI"),),
        ),
        GlueTask("RTE", "rte", _PAIR, _PAIR, "label", _ENTAILMENT, ("accuracy",), 6, (Held("RTE"),)),
        GlueTask(
            "WNLI", "wnli", _PAIR, _PAIR, "label", _BINARY, ("accuracy",), 6, (Held("WNLI"),), in_average=False
        ),
    )
}  # fmt: skip
"""In the order of the paper's table. The paper leaves WNLI out, whose development set contradicts its training set."""

DIAGNOSTIC = GlueTask("AX", "ax", _PAIR, TASKS["MNLI"].fields, "", TASKS["MNLI"].labels, (), 0, (), in_average=False)
"""GLUE's diagnostic set: only texts, which the model of MNLI answers. Not a task to train."""

FROM_MNLI = ("MRPC", "STS-B", "RTE")
"""Tasks that can start from a model fine-tuned on MNLI (Phang et al., 2018)."""


def folder_of(task: str, from_mnli: bool) -> str:
    """Returns the name of a task's folder of results."""
    return f"{task}-from-MNLI" if from_mnli else task


def chosen(names: Iterable[str]) -> list[GlueTask]:
    """Returns the tasks called ``names``, whatever their case, in the order of the table.

    Raises:
        UserError: there is no such task.
    """
    known = {name.lower(): name for name in TASKS}
    wanted = set()
    for name in names:
        if name.strip().lower() not in known:
            raise UserError("--tasks", f"has {name.strip()!r}, which is not a task of GLUE", nearest(name, TASKS))
        wanted.add(known[name.strip().lower()])
    return [task for task in TASKS.values() if task.name in wanted]
