"""Writes the model card of an export from what its state records."""

from __future__ import annotations

import json
from typing import Any

from stacking.model.config import ModelConfig
from stacking.model.size import count_parameters

_CARD = """\
---
library_name: transformers
pipeline_tag: fill-mask
tags: [bert, progressive-stacking]
---

# BERT, {layers} layers, {parameters:,} parameters

A BERT encoder with masked-LM and next-sentence heads, written by `stacking export`.

| | |
|---|---|
| layers | {layers} |
| hidden size, heads, feed-forward size | {hidden}, {heads}, {intermediate} |
| vocabulary | {vocabulary:,} |
| longest sequence | {max_positions} tokens |
{training}

## Use

```python
from transformers import AutoModelForMaskedLM{tokenizer_import}

model = AutoModelForMaskedLM.from_pretrained("PATH_OF_THIS_FOLDER"{trusted}){tokenizer_use}
```

{use}{tokenizer_note}

## Where the weights come from

{stages}It was not evaluated beyond what its training run reports. It repeats the biases and errors of the text that it
was trained on.
"""


def model_card(config: ModelConfig, manifest: dict[str, Any], has_tokenizer: bool, use: str, own_code: bool) -> str:
    """Returns the model card as Markdown.

    Args:
        manifest: the state's manifest, whose ``progress`` and ``provenance`` describe the training.
        use: what to know about the class that loads it, as Markdown.
    """
    return _CARD.format(
        **config.model_dump(),
        use=use,
        trusted=", trust_remote_code=True" if own_code else "",
        parameters=count_parameters(config),
        training=_training(manifest),
        tokenizer_import=", AutoTokenizer" if has_tokenizer else "",
        tokenizer_use='\ntokenizer = AutoTokenizer.from_pretrained("PATH_OF_THIS_FOLDER")' if has_tokenizer else "",
        tokenizer_note="" if has_tokenizer else " The tokenizer is not part of this folder.",
        stages=_stages(manifest),
    )


def _training(manifest: dict[str, Any]) -> str:
    progress = manifest.get("progress") or {}
    labels = {"tokens": "tokens seen in training, without padding", "samples": "samples seen in training"}
    rows = [f"| {label} | {_shown(progress[key])} |" for key, label in labels.items() if progress.get(key) is not None]
    return "\n".join([*rows, f"| optimizer updates since the moments began | {manifest.get('optimizer_step', 0):,} |"])


def _stages(manifest: dict[str, Any]) -> str:
    """Returns the stages of the training, or the state's provenance if they are unknown."""
    stages = (manifest.get("progress") or {}).get("stages")
    if not stages:
        return f"```json\n{json.dumps(manifest.get('provenance') or {}, indent=2, ensure_ascii=False)}\n```\n\n"
    rows = [
        f"| {stage['layers']} | {stage['steps']:,} | {stage['global_batch']:,} | {_grown(stage['growth'])} |"
        for stage in stages
    ]
    head = "| layers | updates | sequences per update | begun from |\n|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n\n"


def _grown(growth: dict[str, str] | None) -> str:
    if growth is None:
        return "random weights, or the model that the run started from"
    return f"the stage before, by `{growth['operator']}` (optimizer state: `{growth['optimizer_state']}`)"


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
