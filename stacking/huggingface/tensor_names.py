"""Converts tensor names of old and new BERT checkpoints to those of today's BertForPreTraining."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from stacking.errors import UserError

TOKENS = "embeddings.word_embeddings.weight"
"""Present in every BERT since 2018, after varying prefixes."""
_ENCODER = ("embeddings.", "encoder.", "pooler.")
_OLD_SPELLINGS = {
    "LayerNorm.gamma": "LayerNorm.weight",
    "LayerNorm.beta": "LayerNorm.bias",
    ".dense_act.": ".dense.",  # NVIDIA's
}
_OTHER_FAMILIES = frozenset(
    {
        *(
            "albert",
            "camembert",
            "convbert",
            "deberta",
            "distilbert",
            "electra",
            "ernie",
            "flaubert",
            "funnel",
            "ibert",
        ),
        *("layoutlm", "longformer", "megatron", "mobilebert", "mpnet", "nezha", "nomic_bert", "rembert", "roberta"),
        *("roformer", "squeezebert", "xlm", "xlnet"),
    }
)
"""Encoders that use BERT's tensor names after their own prefix but compute another function."""


def modern_names(stored: Iterable[str], where: Path) -> dict[str, str]:
    """Maps today's names to the stored ones; tensors outside BERT keep their names.

    The prefix of a wrapper (``module.``, ``model.``, ``0.auto_model.`` …) is found from the token embedding's name.

    Raises:
        UserError: there are several encoders, one of another family, or a duplicate tensor.
    """
    names = list(stored)
    encoder = _encoder_prefix(names, where)
    wrapper = encoder.removesuffix("bert.")
    found: dict[str, str] = {}
    for name in names:
        modern = _modern(name, encoder, wrapper)
        if modern in found:
            raise UserError(where, f"holds {modern} twice, as {found[modern]} and {name}", "remove one of them")
        found[modern] = name
    return found


def _encoder_prefix(names: list[str], where: Path) -> str:
    prefixes = sorted({name.removesuffix(TOKENS) for name in names if name.endswith(TOKENS)})
    if len(prefixes) > 1:
        shown = " and ".join(repr(prefix) for prefix in prefixes[:3])
        raise UserError(where, f"holds {len(prefixes)} encoders, under {shown}", "save only the one to use")
    prefix = prefixes[0] if prefixes else "bert."
    family = prefix.rstrip(".").rpartition(".")[2]
    if family in _OTHER_FAMILIES:
        raise UserError(where, f"holds the tensors of a model called {family!r}", "only BERT can be used here")
    return prefix


def _modern(name: str, encoder: str, wrapper: str) -> str:
    for old, new in _OLD_SPELLINGS.items():
        name = name.replace(old, new)
    inside = name.removeprefix(encoder)
    if name.startswith(encoder) and inside.startswith(_ENCODER):
        return f"bert.{inside}"
    return name.removeprefix(wrapper)
