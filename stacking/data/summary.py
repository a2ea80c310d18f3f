"""Summarises the prepared data in figures, and warns about anything unusual."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stacking.terminal.units import counted

_FAR = 1.5
"""A held-out share larger or smaller than requested by this factor triggers a warning."""
_USUAL_SENTENCES = (4.0, 100.0)
"""In tokens. English prose has about 25 per sentence."""
_FEWEST_SENTENCES = 2.0
_MANY_EMPTY = 0.1
_SHOWN_NAMES = 3

_NAMES = {
    "lines": "lines (one sentence per line)",
    "text": "text (paragraphs)",
    "markdown": "Markdown",
    "wiki": "wiki articles",
    "jsonl": "JSON lines",
    "parquet": "Parquet",
}


@dataclass(frozen=True)
class Summary:
    """The figures of a prepared folder, over both splits unless one is named."""

    documents: int
    documents_held_out: int
    documents_empty: int
    sentences: int
    tokens: int
    tokens_held_out: int
    share_held_out: float
    """Share of the tokens."""
    share_asked: float | None
    """None if the held-out text was given."""
    share_unknown: float
    """Share of [UNK] in the tokens."""
    vocabulary: int

    @property
    def tokens_per_sentence(self) -> float:
        return self.tokens / max(self.sentences, 1)

    @property
    def sentences_per_document(self) -> float:
        return self.sentences / max(self.documents, 1)

    def as_dict(self) -> dict[str, Any]:
        ratios = {
            "tokens_per_sentence": self.tokens_per_sentence,
            "sentences_per_document": self.sentences_per_document,
        }
        return asdict(self) | ratios | {"warnings": list(self.warnings())}

    def as_text(self) -> str:
        asked = "given" if self.share_asked is None else f"asked for: {self.share_asked:.3g}"
        empty = f"; not counting {self.documents_empty:,} empty" if self.documents_empty else ""
        rows = {
            "documents": f"{self.documents:,}, {self.documents_held_out:,} of them held out{empty}",
            "sentences": f"{self.sentences:,}, {self.sentences_per_document:.1f} per document",
            "tokens": f"{self.tokens:,}, {self.tokens_per_sentence:.1f} per sentence",
            "held out": f"{self.share_held_out:.2%} of the tokens ({asked})",
            "[UNK]": f"{self.share_unknown:.2%} of the tokens",
            "vocabulary": f"{self.vocabulary:,} entries",
        }
        return "\n".join(f"  {name:11} {value}" for name, value in rows.items())

    def warnings(self) -> Iterable[str]:
        """Yields warnings about unusual or unexpected figures, except for [UNK]: see ``unknown``."""
        if self.share_asked is not None and not (
            self.share_asked / _FAR <= self.share_held_out <= self.share_asked * _FAR
        ):
            yield (
                f"{self.share_held_out:.1%} of the tokens are held out instead of {self.share_asked:.1%}: "
                f"the {self.documents:,} documents are too few or too long; --held-out-input gives the text to hold out"
            )
        low, high = _USUAL_SENTENCES
        if not low <= self.tokens_per_sentence <= high:
            yield (
                f"a sentence has {self.tokens_per_sentence:.1f} tokens instead of the usual {low:.0f} to {high:.0f}: "
                "is the format of the text detected correctly? --format overrides it"
            )
        if self.sentences_per_document < _FEWEST_SENTENCES:
            yield (
                f"a document has {self.sentences_per_document:.1f} sentences: samples of two segments need two; "
                "set the format with --format if documents are split wrongly, or train on samples: packed"
            )
        rows = self.documents + self.documents_empty
        if self.documents_empty > _MANY_EMPTY * rows:
            yield f"{self.documents_empty:,} of {rows:,} documents are empty: is --text-key right?"


def summarise(manifest: Mapping[str, Any]) -> Summary:
    """Returns the figures in the manifest of a prepared folder."""
    train, held_out = (manifest["splits"][split] for split in ("train", "held_out"))
    total = {name: train[name] + held_out[name] for name in train}
    is_given = any(source["held_out"] for source in manifest["source"])
    return Summary(
        documents=total["documents"],
        documents_held_out=held_out["documents"],
        documents_empty=sum(source["empty"] for source in manifest["source"]),
        sentences=total["sentences"],
        tokens=total["tokens"],
        tokens_held_out=held_out["tokens"],
        share_held_out=held_out["tokens"] / max(total["tokens"], 1),
        share_asked=None if is_given else manifest["options"]["held_out"],
        share_unknown=total["unknown"] / max(total["tokens"], 1),
        vocabulary=manifest["vocabulary"],
    )


def read_as(name: str, formats: Mapping[str, int], passed_over: Sequence[tuple[Path, str]]) -> list[str]:
    """Reports line by line in which formats the files of the input ``name`` are read, and which are skipped and why."""
    read = ", ".join(f"{counted(count, 'file')} as {_NAMES[format]}" for format, count in formats.items())
    lines = [f"{name}: reading {read}"] if read else []
    by_reason: dict[str, list[str]] = {}
    for path, reason in passed_over:
        by_reason.setdefault(reason, []).append(path.name)
    for reason, names in sorted(by_reason.items()):
        shown = ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")
        lines.append(f"{name}: skipping {len(names):,} ({reason}): {shown}")
    return lines
