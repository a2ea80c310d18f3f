"""Examines the section ``optimizer``: Adam under any name, with parameters that the built class accepts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stacking.config.reading import nearest, shown
from stacking.deepspeed_config.ds_facts import REMOVED_OPTIMIZERS
from stacking.deepspeed_config.examination import MISSING, Examination, get
from stacking.deepspeed_config.facts import NUMBER, OPTIMIZER_PARAMETERS, VERSION
from stacking.deepspeed_config.names import meant

_ADAM = {"adam": "Adam", "adamw": "AdamW"}
_SAME = ("cpuadam", "deepspeedcpuadam", "bertadam", "torchadam")
"""Other names of Adam, in lower case."""
_COMPILED = ("fusedadam", "deepspeedfusedadam")
"""Names of DeepSpeed's own kernel, which is built at the first start."""
_COMMON = ("lr", "betas", "eps", "weight_decay", "torch_adam", "adam_w_mode", "bias_correction", "foreach", "fused")
_HARMLESS = {"amsgrad": False, "maximize": False, "capturable": False, "differentiable": False, "set_grad_none": True}
"""Parameters of one of the classes, with their neutral value."""
_LIKE_ADAM = ("", "onebitadam", "zerooneadam", "muadam", "muadamw")
"""Optimizers whose learning rates suit Adam."""


def examine_optimizer(found: Examination) -> None:
    """Checks type and parameters, as far as they do not depend on the device."""
    if not isinstance(found.get("optimizer"), Mapping):
        return
    if found.get("optimizer.legacy_fusion", MISSING) is not MISSING:
        found.drop("optimizer.legacy_fusion", "selects one of two equivalent implementations", "left out")
    other = _other_type(found)
    parameters = found.get("optimizer.params", {})
    if parameters is None:
        found.drop("optimizer.params", "is null", "the recipe's values apply")
        return
    if not isinstance(parameters, Mapping):
        found.drop("optimizer.params", f"is {shown(parameters)}", "give an object", refused=True)
        return
    for key in list(parameters):
        _parameter(found, str(key), parameters[key], other)
    if found.get("optimizer.params.fused") is True and found.get("optimizer.params.foreach") is True:
        found.drop("optimizer.params.foreach", "is true and so is fused, but PyTorch accepts only one", refused=True)


def _other_type(found: Examination) -> str:
    """Normalises the name of Adam; returns that of another kind of optimizer, in lower case, else nothing."""
    path = "optimizer.type"
    name = found.get(path)
    if name is None:
        found.put(path, "AdamW")
        return ""
    if not isinstance(name, str):
        found.replace(path, "AdamW", f"is {shown(name)}", "give 'AdamW'", refused=True)
        return ""
    plain = name.lower().replace("_", "").replace("torch.optim.", "")
    if plain in _ADAM:
        found.put(path, _ADAM[plain])
        return ""
    if plain in _COMPILED:
        if found.get("optimizer.params.torch_adam", "auto") == "auto":
            found.put("optimizer.params", {**(found.get("optimizer.params") or {}), "torch_adam": False})
        found.replace(path, "AdamW", f"is {shown(name)}", "read as AdamW with torch_adam: false")
        return ""
    if plain in _SAME:
        found.replace(path, "AdamW", f"is {shown(name)}", "read as AdamW")
        return ""
    remedy = "use 'AdamW'"
    if plain == "lamb":
        problem, remedy = f"is {shown(name)}, which is the recipe's choice", "write optimizer: {type: lamb} there"
    elif plain in REMOVED_OPTIMIZERS:
        problem = f"{name} was removed from DeepSpeed ({VERSION})"
    else:
        problem = f"is {shown(name)}, but a state holds the two moments of Adam"
    found.replace(path, "AdamW", problem, remedy, refused=True)
    return plain


def _parameter(found: Examination, key: str, value: Any, other: str) -> None:
    path, is_known = f"optimizer.params.{key}", key in (*_COMMON, "adamw_mode")
    if value is None:
        found.drop(path, "is null", "the recipe's value applies")
    elif key == "max_grad_norm":
        if value != "auto":
            found.rename(path, "gradient_clipping", "is refused by DeepSpeed")
        else:
            found.drop(path, "is refused by DeepSpeed", "left out: it is 'auto'")
    elif key in _HARMLESS and value not in (_HARMLESS[key], "auto"):
        found.drop(path, f"is {shown(value)}, which a state here cannot store", refused=True)
    elif key in _HARMLESS or (other and not is_known):
        found.drop(path, "changes nothing for Adam here", "left out")
    elif not is_known:
        found.drop(path, "is not a parameter of Adam", meant(path) or nearest(key[:80], _COMMON), refused=True)
    elif value == "auto":
        return
    elif key == "lr" and other not in _LIKE_ADAM:
        problem = "was chosen for another optimizer, and Adam may diverge with it"
        found.drop(path, problem, "left out: the recipe's learning rate applies")
    elif key == "betas":
        _betas(found, path, value)
    elif key in ("lr", "eps", "weight_decay"):
        found.convert(path, NUMBER, positive=key in ("lr", "eps"))
    elif key in ("adam_w_mode", "adamw_mode"):
        _decoupled(found, path, value)


def _betas(found: Examination, path: str, value: Any) -> None:
    try:
        read = [float(beta) for beta in value] if isinstance(value, (list, tuple)) else []
    except (TypeError, ValueError):
        read = []
    if len(read) != 2 or not all(0 <= beta < 1 for beta in read):
        found.drop(path, f"is {shown(value)}", "give two numbers between 0 and 1", refused=True)
    elif read != list(value):
        found.replace(path, read, f"is {shown(value)}", f"read as {shown(read)}")


def _decoupled(found: Examination, path: str, value: Any) -> None:
    if value is False and found.get("optimizer.type") == "Adam" and found.get("optimizer.params.weight_decay", 0.01):
        found.drop(path, "is false, but weight decay here is decoupled", "remove it", refused=True)
    else:
        found.drop(path, "changes nothing here: weight decay is decoupled", "left out")


def given_parameters(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters of an examined configuration's optimizer, except those that are ``auto``."""
    parameters = get(content, "optimizer.params") or {}
    return {key: value for key, value in parameters.items() if value != "auto"}


def adam_class(content: Mapping[str, Any]) -> str:
    """Returns the class that DeepSpeed builds for Adam: a key of `OPTIMIZER_PARAMETERS`."""
    if get(content, "optimizer.params.torch_adam", "auto"):
        return "AdamW"
    offloaded = get(content, "zero_optimization.offload_optimizer.device", "none") != "none"
    return "DeepSpeedCPUAdam" if offloaded else "FusedAdam"


def refused_parameters(content: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Lists parameters that the built class does not accept: name, problem, remedy."""
    built = adam_class(content)
    takes = OPTIMIZER_PARAMETERS[built] | {"torch_adam", "adam_w_mode"}
    found = []
    for key, value in given_parameters(content).items():
        if key in takes or (key == "bias_correction" and value is True):
            continue
        module = "torch.optim" if built == "AdamW" else "deepspeed.ops.adam"
        remedy = "remove it"
        if key == "bias_correction":
            remedy = "remove it: the bias is then corrected, which only matters in the first thousand steps"
        found.append((key, f"is {shown(value)}, which {module}.{built}, built here, does not accept", remedy))
    return found
