"""Lists how each of DeepSpeed's keys is treated; `stacking.deepspeed_config.facts` lists the keys themselves."""

from __future__ import annotations

from collections.abc import Mapping

from stacking.deepspeed_config.facts import FLAG, OTHER, REMOVED_ZERO, SECTIONS, TOP, VERSION


def _keys(text: str) -> frozenset[str]:
    return frozenset(text.split())


REMOVED_KEYS: Mapping[str, str] = {
    "nebula": "remove it: checkpoints here are written by DeepSpeed's default engine",
    "compression_training": "remove it",
    "amp": "remove it and use fp16 or bf16",
    "quantize_training": "remove it",
    "sparse_gradients": "remove it",
    "eigenvalue": "remove it",
    "sparse_attention": "remove it",
    "elasticity": "remove it: a run here resumes on any number of ranks",
    "graph_harvesting": "remove it",
    "curriculum_learning": "remove it",
    "progressive_layer_drop": "remove it",
}
"""Top-level keys whose mere presence raises, and what to do instead."""

REMOVED_OPTIMIZERS = frozenset({"onebitadam", "onebitlamb", "zerooneadam"})

KNOWN_KEYS: Mapping[str, str] = {key: about["kind"] for key, about in TOP.items()} | {"stacking": OTHER}
"""Every top-level key, and the kind of its value."""

_OWN = {"activation_checkpointing": FLAG, "compile": OTHER, "why": OTHER}
_OPTIMIZER = {"type": OTHER, "params": OTHER, "legacy_fusion": FLAG}

SECTION_KEYS: Mapping[str, Mapping[str, str]] = {
    **{path: {key: about["kind"] for key, about in keys.items()} for path, keys in SECTIONS.items()},
    "stacking": _OWN,
    "optimizer": _OPTIMIZER,
    "scheduler": {"type": OTHER, "params": OTHER},
}
"""The keys of every section, at any depth, and the kinds of their values."""

CHOICES: Mapping[str, tuple[str, ...]] = {
    "communication_data_type": ("fp16", "bf16", "fp32"),
    "seq_parallel_communication_data_type": ("fp16", "bf16", "fp32"),
    "data_types.grad_accum_dtype": ("fp16", "bf16", "fp32"),
    "gradient_allreduce_op": ("mean", "sum"),
    "log_level": ("debug", "info", "warning", "error", "critical"),
    "checkpoint.tag_validation": ("Ignore", "Warn", "Fail"),
}
"""Keys for which DeepSpeed accepts one of a few words."""

POSITIVE_KEYS = _keys(
    """
    steps_per_print gradient_predivide_factor zero_optimization.reduce_bucket_size
    zero_optimization.allgather_bucket_size
    """
)
"""Numbers by which DeepSpeed divides, or that it rejects at 0."""

BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
"""Two of these determine the third."""
MOST_SEQUENCES = 10**12
"""As in a recipe."""

AUTO_KEYS = _keys(
    """
    train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps gradient_clipping steps_per_print
    fp16.enabled fp16.loss_scale fp16.initial_scale_power fp16.loss_scale_window fp16.hysteresis fp16.min_loss_scale
    bf16.enabled zero_optimization.reduce_bucket_size zero_optimization.allgather_bucket_size
    zero_optimization.stage3_prefetch_bucket_size zero_optimization.stage3_param_persistence_threshold
    """
)
"""Where ``"auto"`` is allowed, in addition to ``optimizer.params`` and ``scheduler.params``."""

_ORDER = "would change which samples are seen, which the plan decides"
_REMOVED = f"was removed from DeepSpeed ({VERSION})"
_MASTER = "would keep the master state in 16 bits, but a state here is fp32"
_SHARDING = "shards the model in a way that cannot be consolidated here"

_QUANTISED = "rounds what the ranks exchange, with kernels that exist for GPUs only, and is not tested here"

UNSUPPORTED: Mapping[str, tuple[object, str, str]] = {
    "torch_autocast": ({}, "is not supported", "use fp16 or bf16"),
    "pipeline": (None, _SHARDING, "remove it; use ZeRO"),
    "tensor_parallel": (None, _SHARDING, "remove it; use ZeRO"),
    "expert_parallel": (None, _SHARDING, "remove it"),
    "sequence_parallel_size": (1, _SHARDING, "remove it"),
    "hybrid_engine": (None, "is for reinforcement learning, not for pre-training", "remove it"),
    "autotuning": (None, "needs DeepSpeed's own launcher", "remove it"),
    "data_efficiency": (None, _ORDER, "remove it"),
    "managed_gradient_accumulation": (True, "disables DeepSpeed's gradient accumulation", "remove it"),
    "weight_quantization": (None, "is for inference", "remove it"),
    "checkpoint.load_universal": (False, "would bypass this program's loading of states", "remove it"),
    "checkpoint.use_node_local_storage": (False, "would scatter a checkpoint over the nodes", "remove it"),
    "datastates_ckpt": (None, "writes checkpoints that cannot be consolidated here", "remove it"),
    "bf16.bf16_master_weights_and_grads": (False, _MASTER, "remove it"),
    "bf16.bf16_optimizer_states": (False, _MASTER, "remove it"),
    "fp16.fp16_master_weights_and_grads": (False, _MASTER, "remove it"),
    **{f"zero_optimization.{key}": (None, _REMOVED, "remove it") for key in sorted(REMOVED_ZERO)},
    "zero_optimization.zenflow": (None, "splits Adam's state in a way that cannot be consolidated here", "remove it"),
    **{
        f"zero_optimization.zero_quantized_{what}": (False, _QUANTISED, "remove it")
        for what in ("weights", "gradients", "nontrainable_weights")
    },
    "checkpoint.writer": (None, "would write checkpoints in a format that cannot be read here", "remove it"),
    "checkpoint.checkpoint_serialization": (True, "would write checkpoints that cannot be read here", "remove it"),
    "compile.offload_parameters": (False, "needs DeepCompile, which is not used here", "remove it"),
}
"""Per dotted key: the harmless value, what is wrong with any other, and what to do instead."""

_DEEPCOMPILE = "needs DeepCompile, which is not used here; stacking.compile compiles the layers"

WITHOUT_EFFECT: Mapping[str, str] = {
    "dataloader_drop_last": "this program's own loader only makes whole batches",
    "vocabulary_size": "DeepSpeed only checks its divisibility; the recipe defines the model",
    "sequence_parallel_size": "there is no sequence parallelism here",
    "seq_parallel_communication_data_type": "there is no sequence parallelism here",
    "use_data_before_expert_parallelism": "there are no experts here",
    "zero_allow_untested_optimizer": "Adam is tested",
    "compile": _DEEPCOMPILE,
    "activation_checkpointing.contiguous_memory_optimization": "layers are recomputed by PyTorch here",
    "activation_checkpointing.synchronize_checkpoint_boundary": "layers are recomputed by PyTorch here",
    "activation_checkpointing.profile": "layers are recomputed by PyTorch here",
    "aio": "it is for NVMe offload, which is not supported here",
    "checkpoint.parallel_write": "it is for pipelines",
    "data_types.param_dtype": "the precision is fp16's, bf16's or the recipe's",
    "data_types.buffer_dtype": "the model has no buffers of this type",
    "data_types.keep_in_fp32_modules": "the model has no such buffers",
    "zero_optimization.zero_hpz_partition_size": "it is for models built in parts; here they are built whole",
    "zero_optimization.elastic_checkpoint": "states are resharded by this program",
    "zero_optimization.leaf_module": "there are no experts here",
    "zero_optimization.save_muon_momentum_buffer_in_memory": "the optimizer is Adam",
    "zero_optimization.offload_optimizer.nvme_path": "offloading goes to the CPU's memory",
    "zero_optimization.offload_param.nvme_path": "offloading goes to the CPU's memory",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": "`stacking export` writes the weights",
    "zero_optimization.gather_16bit_weights_on_model_save": "`stacking export` writes the weights",
}
"""Keys and sections that DeepSpeed accepts and that have no effect here, and why."""

EFFECTS: Mapping[str, str] = {
    "train_batch_size": "sequences per update, unless the recipe sets it",
    "train_micro_batch_size_per_gpu": "sequences per rank and micro-step, unless the recipe sets it",
    "gradient_accumulation_steps": "micro-steps per update; follows from the other two and the number of ranks",
    "optimizer.legacy_fusion": "no effect: two ways to the same result",
    "optimizer.type": "Adam with decoupled weight decay, by any of its names",
    "optimizer": "Adam, with decoupled weight decay",
    "optimizer.params": "`lr` is the peak; `lr`, `betas`, `eps` and `weight_decay` apply unless the recipe sets them",
    "scheduler": "becomes the recipe's schedule, unless the recipe has one",
    "gradient_clipping": "the recipe's `optimizer.clip`, unless the recipe sets it",
    "fp16": "passed to DeepSpeed's loss scaling",
    "fp16.enabled": "decides the precision if the recipe says `auto`",
    "bf16.enabled": "decides the precision if the recipe says `auto`",
    "zero_optimization": "passed to DeepSpeed",
    "zero_optimization.offload_optimizer.device": "`cpu` or `none`; `nvme` is refused",
    "zero_optimization.offload_param.device": "`cpu` or `none`; `nvme` is refused",
    "zero_optimization.cpu_offload": "read as `offload_optimizer`",
    "zero_optimization.cpu_offload_param": "read as `offload_param`",
    "zero_optimization.cpu_offload_use_pin_memory": "read as `pin_memory` of what is offloaded",
    "dump_state": "DeepSpeed prints its configuration",
    "memory_breakdown": "DeepSpeed prints memory figures",
    "wall_clock_breakdown": "DeepSpeed prints the times of forward, backward and step",
    "steps_per_print": "how often DeepSpeed prints; never by default",
    "comms_logger": "DeepSpeed logs its collectives",
    "activation_checkpointing": "turns on `stacking.activation_checkpointing`",
    "tensorboard": "written by DeepSpeed, to one folder per stage",
    "csv_monitor": "written by DeepSpeed, to one folder per stage",
    "wandb": "written by DeepSpeed; needs the package wandb",
    "comet": "written by DeepSpeed; needs the package comet_ml",
    "flops_profiler": "printed by DeepSpeed; one file per stage",
    "timers": "passed to DeepSpeed; this program measures throughput itself",
    "checkpoint": "passed to DeepSpeed",
    "stacking.compile": "compile each layer; `auto`: where that is faster",
    "stacking.activation_checkpointing": (
        "keep only a layer's input and recompute the layer in the backward pass: the same losses and gradients, "
        "bit for bit; `stacking bench RECIPE --against checkpointing` measures memory and speed with and without"
    ),
    "stacking.why": "reasons for people to read, written by `stacking tune`",
    "stacking": "read by this program; not passed to DeepSpeed",
    "": "passed to DeepSpeed",
}
"""What a key or section does here; the longest prefix of a dotted key applies, ``""`` for all others."""
