"""Reads the official TSV files of GLUE, with their quirks.

A quotation mark is an ordinary character (many are unbalanced), some files start with a byte-order mark, CoLA has no
header line, MNLI has 12 or 16 columns of which three count, and a few lines of QQP lack columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import numpy as np

from stacking.config.reading import shown
from stacking.errors import UserError
from stacking.glue.examples import Examples, require_scorable, task_folder
from stacking.glue.tasks import DIAGNOSTIC, GlueTask, Held
from stacking.storage.files import disk_errors

_UNDECIDED = "-"
"""MNLI's label of examples on which the annotators did not agree."""
_MOST_LEFT_OUT = 0.01
"""Share of lines that may lack columns or a label."""

_DIAGNOSTICS = ("AX/AX.tsv", "AX.tsv", "diagnostic/diagnostic.tsv")
"""The names that the benchmark's site and its download script give to the diagnostic set."""

Line = tuple[int, list[str]]
"""Number, from 1, and columns."""


class TsvFolder:
    """A folder with a subfolder for each task: ``CoLA/train.tsv``, ``dev.tsv`` and, for submissions, ``test.tsv``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def train(self, task: GlueTask) -> Examples:
        """Returns the training set."""
        return self._labelled(task, "train")

    def dev(self, task: GlueTask, held: Held) -> Examples:
        """Returns a development set."""
        return self._labelled(task, held.dev)

    def test(self, task: GlueTask, held: Held) -> Examples | None:
        """Returns a test set; None: there is none."""
        path = task_folder(self.folder, task) / f"{held.test}.tsv"
        return read_tsv(path, task, labelled=False) if path.is_file() else None

    def diagnostic(self) -> Examples | None:
        """Returns the diagnostic set AX; None: there is none."""
        path = next((self.folder / name for name in _DIAGNOSTICS if (self.folder / name).is_file()), None)
        return read_tsv(path, DIAGNOSTIC, labelled=False) if path is not None else None

    def _labelled(self, task: GlueTask, name: str) -> Examples:
        path = task_folder(self.folder, task) / f"{name}.tsv"
        if not path.is_file():
            raise UserError(path, "does not exist", f"restore it, or leave {task.name} out with --tasks")
        return require_scorable(task, str(path), read_tsv(path, task, labelled=True))


def read_tsv(path: Path, task: GlueTask, labelled: bool) -> Examples:
    """Reads one file; lines that lack a column or a label are counted and left out of a labelled file.

    Raises:
        UserError: the file is not UTF-8, lacks a column, has an unknown label, or too many incomplete lines.
    """
    lines = _lines(path)
    header, first = _header(path, task, labelled, lines)
    columns = [_column(path, header, name) for name in task.text]
    label = _column(path, header, task.label) if labelled else -1
    name = next((header.index(key) for key in ("index", "id") if key in header), -1)
    texts: tuple[list[str], list[str]] = ([], [])
    labels: list[float] = []
    ids: list[str] = []
    left_out = 0
    for number, row in chain(first, lines):
        if len(row) <= max(*columns, label) or (labelled and row[label] == _UNDECIDED):
            if not labelled:
                raise UserError(f"{path}: line {number}", f"has {len(row)} columns", f"give all {len(header)}")
            left_out += 1
            continue
        for column, text in zip(columns, texts, strict=False):
            text.append(row[column])
        if labelled:
            labels.append(_number(path, number, task, row[label]))
        else:
            ids.append(row[name] if name >= 0 else str(len(ids)))
    if left_out > max(_MOST_LEFT_OUT * (left_out + len(labels)), 1):
        problem = f"has {left_out:,} of {left_out + len(labels):,} lines without all columns and a label"
        raise UserError(path, problem, "download the file again")
    return Examples(*texts, np.array(labels, dtype=np.float64) if labelled else None, ids, left_out)


def _lines(path: Path) -> Iterator[Line]:
    """Yields the non-empty lines; not with `csv`, which also ends a line at a lone carriage return."""
    try:
        with disk_errors(path), open(path, encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                text = line.rstrip("\r\n")
                if text:
                    yield number, text.split("\t")
    except UnicodeDecodeError as error:
        raise UserError(path, f"is not UTF-8 ({error.reason})", "download the file again") from None


def _header(path: Path, task: GlueTask, labelled: bool, lines: Iterator[Line]) -> tuple[list[str], list[Line]]:
    """Returns the names of the columns, and the first line where it is an example already."""
    first = next(lines, None)
    if first is None:
        raise UserError(path, "is empty", f"restore {task.name}, or leave it out with --tasks")
    if labelled and task.without_header and task.text[0] not in first[1]:
        return list(task.without_header), [first]
    return first[1], []


def _column(path: Path, header: list[str], name: str) -> int:
    if name not in header:
        found = ", ".join(header[:12])
        raise UserError(path, f"has no column {name!r} (it has {shown(found)})", "give the official file of this task")
    return header.index(name)


def _number(path: Path, line: int, task: GlueTask, text: str) -> float:
    if not task.is_regression:
        known: Mapping[str, int] = {label: number for number, label in enumerate(task.labels)}
        if text not in known:
            expected = " or ".join(task.labels)
            raise UserError(f"{path}: line {line}", f"has the label {shown(text)}", f"labels are {expected}")
        return float(known[text])
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 5:
        raise UserError(f"{path}: line {line}", f"has the score {shown(text)}", "scores are numbers from 0 to 5")
    return value
