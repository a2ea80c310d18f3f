"""Translates Hugging Face Accelerate's file (``default_config.yaml``) to the DeepSpeed configuration it stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stacking.config.reading import read_yaml_mapping
from stacking.errors import UserError

_KEYS = {
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "gradient_clipping",
    "zero_stage": "zero_optimization.stage",
    "offload_optimizer_device": "zero_optimization.offload_optimizer.device",
    "offload_param_device": "zero_optimization.offload_param.device",
    "offload_optimizer_nvme_path": "zero_optimization.offload_optimizer.nvme_path",
    "offload_param_nvme_path": "zero_optimization.offload_param.nvme_path",
    "zero3_save_16bit_model": "zero_optimization.stage3_gather_16bit_weights_on_model_save",
}


def read_accelerate(path: Path) -> dict[str, Any]:
    """Return the DeepSpeed configuration in an Accelerate file.

    Raises:
        UserError: it is not such a file, or refers to another file that holds the configuration.
    """
    content = read_yaml_mapping(path)
    section = content.get("deepspeed_config")
    if not isinstance(section, dict):
        raise UserError(
            f"{path}: deepspeed_config", "is missing", "give a DeepSpeed JSON, or Accelerate's file with one"
        )
    if section.get("deepspeed_config_file"):
        where = f"{path}: deepspeed_config.deepspeed_config_file"
        raise UserError(where, "refers to the configuration", f"adopt {section['deepspeed_config_file']} instead")
    config: dict[str, Any] = {}
    for key, place in _KEYS.items():
        if key in section:
            holder = config
            *above, name = place.split(".")
            for part in above:
                holder = holder.setdefault(part, {})
            holder[name] = section[key]
    precision = content.get("mixed_precision")
    if precision in ("fp16", "bf16"):
        config[precision] = {"enabled": True}
    return config
