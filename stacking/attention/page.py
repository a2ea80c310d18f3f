"""Writes ``attention.html``: one self-contained page to browse layers and heads and to hover over sentences."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from stacking.attention.measure import Example
from stacking.attention.result import Attention
from stacking.report.html import environment
from stacking.storage.files import write_atomically

PAGE = "attention.html"


def write_page(attention: Attention, examples: Sequence[Example], folder: Path, model: Path) -> None:
    """Writes ``attention.html`` into ``folder``; ``model`` gives the page its name."""
    write_atomically(folder / PAGE, render(attention, examples, model))


def render(attention: Attention, examples: Sequence[Example], model: Path) -> str:
    """Returns the page as HTML."""
    described = attention.described
    return (
        environment("attention")
        .get_template("attention.html")
        .render(
            name=model.resolve().name,
            described=described,
            even=attention.even,
            halves=attention.similarity.halves_cosine,
            others=attention.similarity.others_cosine,
            content=embedded({**attention.model_dump(mode="json"), "examples": [_example(one) for one in examples]}),
            made=f"{datetime.now():%Y-%m-%d %H:%M}",
        )
    )


def embedded(content: Any) -> str:
    """Returns JSON that is safe inside a script element, whatever text it holds."""
    text = json.dumps(_rounded(content), ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _example(example: Example) -> dict[str, Any]:
    return {"words": list(example.words), "probabilities": base64.b64encode(example.probabilities.tobytes()).decode()}


def _rounded(value: Any) -> Any:
    """Shortens numbers to five digits: the page shows three, and ``attention.json`` has all."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value
