"""Finds the DeepSpeed configuration in files of programs around DeepSpeed: Accelerate's and the Trainer's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stacking.config.reading import read_yaml_mapping, shown
from stacking.deepspeed_config.examination import put
from stacking.deepspeed_config.findings import KeyRow
from stacking.deepspeed_config.read import read_config
from stacking.errors import UserError

_SECTION, _INLINE = "deepspeed_config", "deepspeed"
"""Accelerate's section, and the Trainer's argument."""
_PLACES = {
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "gradient_clipping",
    "zero_stage": "zero_optimization.stage",
    "offload_optimizer_device": "zero_optimization.offload_optimizer.device",
    "offload_param_device": "zero_optimization.offload_param.device",
    "offload_optimizer_nvme_path": "zero_optimization.offload_optimizer.nvme_path",
    "offload_param_nvme_path": "zero_optimization.offload_param.nvme_path",
    "zero3_save_16bit_model": "zero_optimization.stage3_gather_16bit_weights_on_model_save",
}
"""DeepSpeed's name for each key of Accelerate's section."""
_LAUNCH = "the recipe's launch section describes the job"
_TPU = "is for TPUs"
_UNUSED = {
    "zero3_init_flag": "models are built whole here and then partitioned",
    "deepspeed_moe_layer_cls_names": "there are no experts here",
    "transformer_moe_cls_names": "there are no experts here",
    **dict.fromkeys(
        (
            "deepspeed_hostfile",
            "deepspeed_multinode_launcher",
            "deepspeed_inclusion_filter",
            "deepspeed_exclusion_filter",
            "compute_environment",
            "distributed_type",
            "machine_rank",
            "main_process_ip",
            "main_process_port",
            "main_training_function",
            "num_machines",
            "rdzv_backend",
            "same_network",
            "gpu_ids",
            "enable_cpu_affinity",
            "use_cpu",
        ),
        _LAUNCH,
    ),
    **dict.fromkeys(("tpu_env", "tpu_use_cluster", "tpu_use_sudo", "tpu_name", "tpu_zone", "downcast_bf16"), _TPU),
    "num_processes": "--gpus, or the recipe's launch.ranks, is the number of ranks",
    "debug": "is for Accelerate's own checks",
    "dynamo_backend": "stacking.compile compiles the layers",
    "dynamo_config": "stacking.compile compiles the layers",
    "fsdp_config": "is for FSDP, but this file is used with DeepSpeed",
    "megatron_lm_config": "is for Megatron-LM, but this file is used with DeepSpeed",
}
"""Keys of Accelerate that have no effect here, and why."""
_PRECISIONS = {"fp16": ("fp16",), "bf16": ("bf16",), "no": ()}


Found = tuple[dict[str, Any], list[KeyRow]]
"""A configuration in another program's file, and a row for every key around it."""


def read_any(path: Path) -> Found:
    """Reads DeepSpeed's JSON or HJSON, Accelerate's YAML, or a file of Trainer arguments.

    Raises:
        UserError: it is none of these, or refers to another file that holds the configuration.
    """
    content = read_yaml_mapping(path) if path.suffix in (".yaml", ".yml") else read_config(path)
    for section, inner in ((_INLINE, content.get(_INLINE)), (_SECTION, content.get(_SECTION))):
        where = f"{path}: {section}"
        if isinstance(inner, Mapping) and inner.get("deepspeed_config_file"):
            where, inner = f"{where}.deepspeed_config_file", inner["deepspeed_config_file"]
        if isinstance(inner, str):
            raise UserError(where, "refers to the configuration", f"adopt {inner} instead")
    if isinstance(content.get(_SECTION), Mapping):
        return _accelerate(content)
    if isinstance(content.get(_INLINE), Mapping):
        return _trainer(content)
    if path.suffix in (".yaml", ".yml"):
        remedy = "give a DeepSpeed JSON, or Accelerate's file with one"
        raise UserError(f"{path}: {_SECTION}", "is missing", remedy)
    return content, []


def _accelerate(content: Mapping[str, Any]) -> Found:
    config: dict[str, Any] = {}
    rows = [_outer(key, value, config) for key, value in content.items() if key != _SECTION]
    for key, value in content[_SECTION].items():
        name = f"{_SECTION}.{key}"
        if key in _PLACES:
            put(config, _PLACES[key], value)
            rows.append(KeyRow(name, shown(value), "translated", "", done=f"read as {_PLACES[key]}"))
        else:
            rows.append(_without_place(name, str(key), value))
    return config, rows


def _outer(key: str, value: Any, config: dict[str, Any]) -> KeyRow:
    if key != "mixed_precision":
        return _without_place(str(key), str(key), value)
    word = "no" if value is False or value is None else str(value)  # YAML reads a bare ``no`` as false
    if word not in _PRECISIONS:
        return KeyRow(
            key, shown(value), "impossible", f"{word} is no precision here", "left out: give fp16, bf16 or no"
        )
    for name in ("fp16", "bf16"):
        config[name] = {"enabled": name in _PRECISIONS[word]}
    return KeyRow(key, shown(value), "translated", "", done=f"read as {word if word != 'no' else 'fp32'}")


def _without_place(name: str, key: str, value: Any) -> KeyRow:
    if key in _UNUSED:
        return KeyRow(name, shown(value), "without meaning here", _UNUSED[key], "left out")
    return KeyRow(name, shown(value), "impossible", "is not a key of Accelerate's that is known here", "left out")


def _trainer(content: Mapping[str, Any]) -> Found:
    """Lays the Trainer's arguments under the configuration that is one of them."""
    inner = dict(content[_INLINE])
    rows = [
        KeyRow(str(key), shown(value), "without meaning here", f"{_INLINE}.{key} is given too", "left out")
        for key, value in content.items()
        if key != _INLINE and key in inner
    ]
    around = {key: value for key, value in content.items() if key != _INLINE}
    return {**around, **inner}, rows
