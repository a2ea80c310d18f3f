"""The summary of `stacking prepare`: figures, and warnings where one is unusual."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from stacking.cli.main import cli
from stacking.data.summary import read_as, summarise
from tests.data.conftest import prose


def manifest(**changes: Any) -> dict[str, Any]:
    """The summary of a usual corpus, 10 % held out, with ``changes`` to its training split, options and source."""
    train = {"documents": 90, "sentences": 900, "tokens": 18_000, "unknown": 10}
    held_out = {"documents": 10, "sentences": 100, "tokens": 2_000, "unknown": 10}
    source = {"held_out": changes.get("given", False), "empty": changes.get("empty", 0)}
    return {
        "splits": {"train": train | {key: changes[key] for key in train if key in changes}, "held_out": held_out},
        "options": {"held_out": changes.get("held_out", 0.1)},
        "source": [source],
        "vocabulary": 1000,
    }


def test_the_figures_cover_both_splits() -> None:
    summary = summarise(manifest(empty=3))
    assert (summary.documents, summary.sentences, summary.tokens) == (100, 1000, 20_000)
    assert (summary.share_held_out, summary.share_unknown, summary.tokens_per_sentence) == (0.1, 0.001, 20)
    assert "100, 10 of them held out; not counting 3 empty" in summary.as_text()


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({}, None),
        ({"held_out": 0.01}, "10.0% of the tokens are held out instead of 1.0%"),
        ({"held_out": 0.6}, "10.0% of the tokens are held out instead of 60.0%"),
        ({"held_out": 0.01, "given": True}, None),
        ({"sentences": 60}, "a sentence has 125.0 tokens"),
        ({"sentences": 9000}, "a sentence has 2.2 tokens"),
        ({"documents": 900}, "a document has 1.1 sentences"),
        ({"empty": 10}, None),
        ({"empty": 50}, "50 of 150 documents are empty: is --text-key right?"),
    ],
)
def test_unusual_figures_are_warnings(changes: dict[str, Any], warning: str | None) -> None:
    warnings = list(summarise(manifest(**changes)).warnings())
    assert warnings == [] if warning is None else any(warning in each for each in warnings)


def test_skipped_files_are_reported_by_reason() -> None:
    passed = [(Path(f"x/{number}.pdf"), "suffix .pdf") for number in range(5)] + [(Path("x/.git"), "hidden")]
    assert read_as("x", {"jsonl": 1, "text": 2}, passed) == [
        "x: reading 1 file as JSON lines, 2 files as text (paragraphs)",
        "x: skipping 1 (hidden): .git",
        "x: skipping 5 (suffix .pdf): 0.pdf, 1.pdf, 2.pdf, ...",
    ]


def test_the_command_prints_it_as_text_and_as_json(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"content": prose(number, 10)}) + "\n" for number in range(40))
    (tmp_path / "a.jsonl").write_text(rows)
    command = ["prepare", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out"), "--workers", "1"]
    command += ["--text-key", "content", "--vocabulary-size", "300", "--held-out", "0.2"]
    first, second = CliRunner().invoke(cli, command), CliRunner().invoke(cli, [*command, "--json"])
    assert first.exit_code == second.exit_code == 0
    assert f"{tmp_path / 'out'} prepared\n" in first.stdout and "sentences   400, 10.0 per document" in first.stdout
    found = json.loads(second.stdout)
    assert (found["already_there"], found["sentences"], found["warnings"]) == (True, 400, [])
    assert found["share_held_out"] == pytest.approx(0.2, abs=0.03)
