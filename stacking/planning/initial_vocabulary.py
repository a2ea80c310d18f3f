"""Checks that the data use the vocabulary of the model to start from, entry by entry, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stacking.config.recipe import Recipe
from stacking.errors import UserError
from stacking.planning.initial_model import Start
from stacking.storage.files import read_json

LEAST_SHARE = 0.95
"""Minimum share of the data's entries that must match the model's. Some publishers replace [unused1] by own words."""

_REMEDY = "prepare the data with the model's own tokenizer: stacking prepare --tokenizer {}"


def compare_words(recipe: Recipe, start: Start | None) -> list[str]:
    """Returns warnings if the vocabulary of the recipe's data differs from that of the model to start from.

    Raises:
        UserError: fewer than ``LEAST_SHARE`` of the data's ids are the same word in both.
    """
    data = Path(recipe.data.path) if recipe.data.path else None
    ours = read_words(data) if data else None
    if start is None or data is None or ours is None:
        return []
    folder = words_folder(start)
    theirs = read_words(folder) if folder else None
    if folder is None or theirs is None:
        return [
            f"start: {recipe.start} records no vocabulary, so it cannot be compared with that of {recipe.data.path}; "
            f"make sure the data were prepared with the model's own tokenizer"
        ]
    same = sum(theirs.get(number) == word for number, word in ours.items())
    if same == len(ours):
        return []
    share = f"{same:,} of {len(ours):,} entries ({same / len(ours):.0%})"
    if same < LEAST_SHARE * len(ours):
        problem = f"{recipe.start} has a different vocabulary from {recipe.data.path}: {share} agree"
        raise UserError(recipe.key("start"), problem, _REMEDY.format(folder))
    return [f"start: {share} of the data's vocabulary are those of {recipe.start}; the others start from other words"]


def words_folder(start: Start) -> Path | None:
    """Finds the vocabulary of ``start``; None if it is unknown.

    It is next to the model or, for a state of a run, in the data of that run.
    """
    if start.format == "huggingface" or read_words(start.path) is not None:
        return start.path
    return data_of_run_around(start.path)


def data_of_run_around(path: Path) -> Path | None:
    """Returns the prepared data of the run in whose folder a state or checkpoint lies; None if there is none."""
    for folder in list(path.absolute().parents)[:3]:
        plan = read_json(folder / "plan.json") if (folder / "plan.json").is_file() else None
        data = plan.get("data", {}).get("path") if isinstance(plan, dict) else None
        if isinstance(data, str) and Path(data).is_dir():
            return Path(data)
    return None


def read_words(folder: Path) -> dict[int, str] | None:
    """Returns the entries of the tokenizer in ``folder`` by id; None if there is none that is a list of words.

    Raises:
        UserError: a file has the wrong content.
    """
    if (folder / "tokenizer.json").is_file():
        return _from_json(read_json(folder / "tokenizer.json"))
    if not (folder / "vocab.txt").is_file():
        return None
    try:
        text = (folder / "vocab.txt").read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(folder / "vocab.txt", "is not UTF-8", "convert it to UTF-8") from None
    words = {number: word.rstrip() for number, word in enumerate(text.removesuffix("\n").split("\n"))}
    added = read_json(folder / "added_tokens.json") if (folder / "added_tokens.json").is_file() else {}
    tokens = added.items() if isinstance(added, dict) else ()
    return words | {number: word for word, number in tokens if isinstance(number, int)}


def _from_json(content: Any) -> dict[int, str] | None:
    model = content.get("model") if isinstance(content, Mapping) else None
    entries = model.get("vocab") if isinstance(model, Mapping) else None
    if not isinstance(entries, Mapping):
        return None
    words = {number: word for word, number in entries.items() if isinstance(number, int)}
    added = content.get("added_tokens")
    tokens = [token for token in added if isinstance(token, Mapping)] if isinstance(added, list) else []
    return words | {token["id"]: token.get("content") for token in tokens if isinstance(token.get("id"), int)}
