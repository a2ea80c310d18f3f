"""What `stacking glue` is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """What the command line says."""

    model: Path
    data: str
    out: Path
    tasks: tuple[str, ...]
    """Empty: all but WNLI."""
    recipe: str
    changes: tuple[str, ...]
    seeds: int | None
    """None: each task's default."""
    from_mnli: bool
    tokenizer: Path | None
    submit: bool = False
    """Submit the tasks to SLURM instead of training them here."""
    site: Path | None = None
    """With ``submit``: the site file; None: the defaults."""

    @property
    def source(self) -> str:
        """The data for a process in another folder: an absolute path, or the name of a dataset."""
        folder = Path(self.data)
        return str(folder.resolve()) if folder.is_dir() else self.data
