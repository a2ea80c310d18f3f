"""Keeps the tables of `stacking glue` in a run, for its page."""

from __future__ import annotations

from pathlib import Path

from stacking.errors import DamagedFile
from stacking.report.tables import Table
from stacking.storage.files import read_sealed, write_sealed

FOLDER, TABLES = "glue", "tables.json"
"""Where a run keeps its scores, and the file with their tables."""


def write_tables(folder: Path, scores: Table, paper: Table) -> None:
    """Writes the tables of a folder of results: every metric, and the paper's table."""
    content = {name: vars(table) for name, table in (("scores", scores), ("paper", paper))}
    write_sealed(folder / TABLES, content)


def read_tables(run_dir: Path) -> tuple[Table, Table] | None:
    """Reads the tables of a run; None: it has not been scored.

    Raises:
        DamagedFile: the file was changed.
    """
    path = run_dir / FOLDER / TABLES
    if not path.is_file():
        return None
    content = read_sealed(path)
    try:
        return Table(**content["scores"]), Table(**content["paper"])
    except (KeyError, TypeError):
        raise DamagedFile(path, "does not hold the tables", "run `stacking glue` again") from None
