"""Writes ``stacking/deepspeed_config/facts.json``: what the installed DeepSpeed and PyTorch accept.

Run ``python -m tools.deepspeed_facts`` after an upgrade. Sections with a pydantic model are
described by it; for the others, DeepSpeed reads a dictionary that records the keys it looks up.
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Iterator
from typing import Any

import deepspeed
import torch
from deepspeed.compile.config import CompileConfig
from deepspeed.datastates.config import DeepSpeedDataStatesConfig
from deepspeed.inference.config import WeightQuantConfig
from deepspeed.monitor import config as monitor
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
from deepspeed.runtime import config, lr_schedules, precision_config
from deepspeed.runtime.config_utils import DeepSpeedConfigModel
from deepspeed.runtime.tensor_parallel.config import TPTrainingConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

from stacking.deepspeed_config.facts import COUNT, FACTS_FILE, FLAG, NUMBER, OTHER, TEXT

MODELS: dict[str, type[DeepSpeedConfigModel]] = {
    "fp16": precision_config.DeepSpeedFP16Config,
    "bf16": precision_config.DeepSpeedBF16Config,
    "zero_optimization": DeepSpeedZeroConfig,
    "comms_logger": config.DeepSpeedCommsConfig.__init__.__globals__["CommsLoggerConfig"],
    "tensorboard": monitor.TensorBoardConfig,
    "wandb": monitor.WandbConfig,
    "csv_monitor": monitor.CSVConfig,
    "comet": monitor.CometConfig,
    "compile": CompileConfig,
    "hybrid_engine": config.HybridEngineConfig,
    "tensor_parallel": TPTrainingConfig,
    "timers.throughput": DeepSpeedThroughputTimerConfig,
    "weight_quantization": WeightQuantConfig,
    "datastates_ckpt": DeepSpeedDataStatesConfig.__init__.__globals__.get("DataStatesConfig", DeepSpeedConfigModel),
}
PLAIN = ("flops_profiler", "activation_checkpointing", "checkpoint", "data_types", "aio", "torch_autocast", "timers")
"""Sections that DeepSpeed reads key by key, without a model."""
NESTED = ("checkpoint.writer", "checkpoint.parallel_write")
OPTIMIZERS = {"AdamW": torch.optim.AdamW, "FusedAdam": FusedAdam, "DeepSpeedCPUAdam": DeepSpeedCPUAdam}
_NOT_SET_BY_USERS = ("params", "model_params", "optimizer", "last_batch_iteration")
BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
NULLABLE_TEXT = ("communication_data_type", "seq_parallel_communication_data_type", "log_level")


class _Keys:
    """The keys of a `_Noted`; records which of them are looked up."""

    def __init__(self, noted: _Noted) -> None:
        self._noted = noted

    def __contains__(self, key: str) -> bool:
        return key in self._noted

    def __iter__(self) -> Iterator[str]:
        return dict.__iter__(self._noted)


class _Noted(dict[str, Any]):
    """A dictionary that records the looked-up keys and their defaults."""

    def __init__(self, content: dict[str, Any], path: str, notes: dict[str, dict[str, Any]]) -> None:
        super().__init__(content)
        self.path, self.notes = path, notes

    def _note(self, key: str, default: Any = None) -> None:
        found = self.notes.setdefault(self.path, {})
        if found.get(key) is None:
            found[key] = default

    def get(self, key: str, default: Any = None) -> Any:
        self._note(key, default)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self._note(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self._note(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        return _Keys(self)

    def __copy__(self) -> _Noted:
        return self


def _read_keys() -> dict[str, dict[str, Any]]:
    """Returns, per dotted section (``""``: the top), the keys that DeepSpeed looks up in it, with their defaults."""
    notes: dict[str, dict[str, Any]] = {}
    sections: dict[str, Any] = {name: _Noted({}, name, notes) for name in PLAIN}
    for nested in NESTED:
        holder, name = nested.split(".")
        dict.__setitem__(sections[holder], name, _Noted({}, nested, notes))
    top = _Noted({"train_batch_size": 1, **sections}, "", notes)
    config.DeepSpeedConfig(top)
    notes[""].pop("sequence_parallel_size", None)
    return notes


def _kind_of_default(default: Any) -> str:
    kinds: tuple[tuple[type, str], ...] = ((bool, FLAG), (int, COUNT), (float, NUMBER), (str, TEXT))
    return next((kind for type_, kind in kinds if isinstance(default, type_)), OTHER)


def _of_default(default: Any) -> dict[str, Any]:
    """Describes a key by its default, which is noted where it is a number below 0 that stands for something else."""
    kind = _kind_of_default(default)
    return {"kind": kind, **({"default": default} if kind in (COUNT, NUMBER) and default < 0 else {})}


def _kind_of(annotation: Any) -> str:
    inner = [a for a in typing.get_args(annotation) if a is not type(None)]
    if type(None) in typing.get_args(annotation) and len(inner) == 1:
        annotation = inner[0]
    kinds = {bool: FLAG, int: COUNT, float: NUMBER, str: TEXT}
    return kinds.get(annotation, OTHER)


def _nested_model(annotation: Any) -> type[DeepSpeedConfigModel] | None:
    for part in (annotation, *typing.get_args(annotation)):
        if isinstance(part, type) and issubclass(part, DeepSpeedConfigModel):
            return part
    return None


def _describe(
    path: str, model: type[DeepSpeedConfigModel], sections: dict[str, dict[str, Any]], titles: dict[str, str]
) -> None:
    keys: dict[str, Any] = {}
    titles.setdefault(model.__name__, path)
    for name, field in model.model_fields.items():
        for key in filter(None, dict.fromkeys((name, field.alias))):
            keys[key] = {"kind": _kind_of(field.annotation)}
            if type(None) in typing.get_args(field.annotation):
                keys[key]["null"] = True
            inner = _nested_model(field.annotation)
            if inner is not None:
                _describe(f"{path}.{key}", inner, sections, titles)
    sections[path] = dict(sorted(keys.items()))


def facts() -> dict[str, Any]:
    """Returns the content of ``facts.json`` as an object."""
    read = _read_keys()
    sections: dict[str, dict[str, Any]] = {}
    titles: dict[str, str] = {}
    for path, model in MODELS.items():
        _describe(path, model, sections, titles)
    for path in (*PLAIN, *NESTED):
        keys = {key: _of_default(value) for key, value in read.get(path, {}).items()}
        sections[path] = dict(sorted(keys.items()))
    top: dict[str, dict[str, Any]] = {key: {"kind": _kind_of_default(value)} for key, value in read[""].items()}
    top |= {key: {"kind": COUNT} for key in (*BATCH, "vocabulary_size", "sequence_parallel_size", "steps_per_print")}
    sections["data_types"]["keep_in_fp32_modules"] = {"kind": OTHER}  # "auto" or a list
    nullable: dict[str, Any] = {"kind": TEXT, "null": True}
    top |= dict.fromkeys(NULLABLE_TEXT, nullable)
    top |= {key.split(".")[0]: {"kind": OTHER} for key in (*sections, "scheduler", "optimizer")}
    removed = {*config._REMOVED_TOP_LEVEL_CONFIG_KEYS, "bfloat16"}
    return {
        "deepspeed": deepspeed.__version__,
        "top": {key: top[key] for key in sorted(top) if key not in removed},
        "sections": dict(sorted(sections.items())),
        "titles": dict(sorted(titles.items())),
        "removed": sorted(config._REMOVED_TOP_LEVEL_CONFIG_KEYS),
        "removed_zero": sorted(config._REMOVED_ZERO_CONFIG_KEYS),
        "optimizers": {name: _parameters(cls) for name, cls in OPTIMIZERS.items()},
        "schedulers": {name: _parameters(getattr(lr_schedules, name)) for name in lr_schedules.VALID_LR_SCHEDULES},
    }


def _parameters(cls: type) -> list[str]:
    names = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]  # type: ignore[misc]
    return sorted(name for name in names if name not in _NOT_SET_BY_USERS)


def text() -> str:
    """Returns the file's text."""
    return json.dumps(facts(), indent=1) + "\n"


if __name__ == "__main__":
    FACTS_FILE.write_text(text(), encoding="utf-8")
