"""What DeepSpeed accepts, as tables, so that a configuration is checked without importing it.

Read from the source of the version named below: ``runtime/config.py``, ``runtime/constants.py``,
``runtime/zero/config.py``, ``runtime/precision_config.py`` and ``monitor/config.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

READ_FROM = "0.19.8"


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
"""Top-level keys that raise by presence alone, and what to do instead."""

REMOVED_OPTIMIZERS = frozenset({"onebitadam", "onebitlamb", "zerooneadam"})

FLAG, COUNT, NUMBER, TEXT, OTHER = "true or false", "a whole number", "a number", "text", ""


def _section(flags: str = "", counts: str = "", numbers: str = "", texts: str = "", other: str = "") -> dict[str, str]:
    kinds = {FLAG: flags, COUNT: counts, NUMBER: numbers, TEXT: texts, OTHER: other}
    return {key: kind for kind, keys in kinds.items() for key in keys.split()}


KNOWN_KEYS: Mapping[str, str] = _section(
    flags="""managed_gradient_accumulation prescale_gradients zero_allow_untested_optimizer
             zero_force_ds_cpu_optimizer wall_clock_breakdown memory_breakdown dump_state disable_allgather
             disable_python_gc dataloader_drop_last use_data_before_expert_parallelism""",
    counts="""train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps steps_per_print
              sequence_parallel_size vocabulary_size""",
    numbers="gradient_clipping gradient_predivide_factor",
    texts="""communication_data_type seq_parallel_communication_data_type gradient_allreduce_op log_level""",
    other="""optimizer scheduler fp16 bf16 bfloat16 torch_autocast zero_optimization flops_profiler comms_logger
             tensorboard csv_monitor wandb comet activation_checkpointing autotuning checkpoint data_types aio pipeline
             hybrid_engine data_efficiency datastates_ckpt weight_quantization compile timers tensor_parallel
             expert_parallel stacking""",
)
"""Every top-level key, and what it must be."""

SECTION_KEYS: Mapping[str, Mapping[str, str]] = {
    "stacking": _section(flags="activation_checkpointing", other="compile why"),
    "optimizer": _section(flags="legacy_fusion", other="type params"),
    "scheduler": _section(other="type params"),
    "fp16": _section(
        flags="enabled auto_cast consecutive_hysteresis fp16_master_weights_and_grads",
        counts="initial_scale_power loss_scale_window hysteresis min_loss_scale",
        numbers="loss_scale",
    ),
    "bf16": _section(
        flags="""enabled immediate_grad_update check_grad_overflow bf16_master_weights_and_grads
                 bf16_optimizer_states"""
    ),
    "zero_optimization": _section(
        flags="""contiguous_gradients reduce_scatter use_multi_rank_bucket_allreduce allgather_partitions overlap_comm
                 compute_grad_norm load_from_fp32_weights elastic_checkpoint cpu_offload cpu_offload_param
                 cpu_offload_use_pin_memory gather_16bit_weights_on_model_save use_all_reduce_for_fetch_params
                 allgather_sequential ignore_unused_parameters legacy_stage1 round_robin_gradients
                 parameter_alignment zero_quantized_weights zero_quantized_nontrainable_weights
                 zero_quantized_gradients memory_efficient_linear pipeline_loading_checkpoint
                 override_module_apply log_trace_cache_warnings enable_sanity_checks
                 save_muon_momentum_buffer_in_memory stage3_gather_16bit_weights_on_model_save
                 stage3_gather_fp16_weights_on_model_save stage3_use_all_reduce_for_fetch_params
                 stage3_allgather_sequential""",
        counts="""reduce_bucket_size allgather_bucket_size sub_group_size prefetch_bucket_size
                  param_persistence_threshold model_persistence_threshold max_live_parameters max_reuse_distance
                  module_granularity_threshold zero_hpz_partition_size stage3_prefetch_bucket_size
                  stage3_param_persistence_threshold stage3_model_persistence_threshold
                  stage3_max_live_parameters stage3_max_reuse_distance stage3_module_granularity_threshold""",
        other="stage offload_param offload_optimizer zenflow leaf_module",
    ),
    "zero_optimization.offload_optimizer": _section(
        flags="pin_memory pipeline_read pipeline_write fast_init super_offload",
        counts="buffer_count",
        numbers="ratio cpuadam_cores_perc",
        other="device nvme_path",
    ),
    "zero_optimization.offload_param": _section(
        flags="pin_memory", counts="buffer_count buffer_size max_in_cpu", other="device nvme_path"
    ),
    "tensorboard": _section(flags="enabled", texts="output_path job_name"),
    "csv_monitor": _section(flags="enabled", texts="output_path job_name"),
    "wandb": _section(flags="enabled", texts="project", other="group team"),
}
"""The keys of the sections in which DeepSpeed refuses any other, and what each must be."""

CHOICES: Mapping[str, tuple[str, ...]] = {
    "communication_data_type": ("fp16", "bf16", "fp32"),
    "seq_parallel_communication_data_type": ("fp16", "bf16", "fp32"),
    "data_types.grad_accum_dtype": ("fp16", "bf16", "fp32"),
    "checkpoint.tag_validation": ("Ignore", "Warn", "Fail"),
}
"""Where DeepSpeed takes one of a few words."""

POSITIVE_KEYS = _keys(
    """
    steps_per_print gradient_predivide_factor zero_optimization.reduce_bucket_size
    zero_optimization.allgather_bucket_size
    """
)
"""Numbers that DeepSpeed divides by, or refuses at 0."""

AUTO_KEYS = _keys(
    """
    train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps gradient_clipping steps_per_print
    fp16.enabled fp16.loss_scale fp16.initial_scale_power fp16.loss_scale_window fp16.hysteresis fp16.min_loss_scale
    bf16.enabled zero_optimization.reduce_bucket_size zero_optimization.allgather_bucket_size
    zero_optimization.stage3_prefetch_bucket_size zero_optimization.stage3_param_persistence_threshold
    """
)
"""Where ``"auto"`` may stand, besides ``optimizer.params`` and ``scheduler.params``."""

_ORDER = "would change which samples are seen, and the plan decides that"
_MASTER = "would keep the master state in 16 bits, and a state here is fp32"
_SHARDING = "shards the model in a way that cannot be consolidated here"

UNSUPPORTED: Mapping[str, tuple[object, str, str]] = {
    "bfloat16": (None, "is the old name of a section", "call it bf16"),
    "torch_autocast": ({}, "is not supported", "use fp16 or bf16"),
    "pipeline": (None, _SHARDING, "remove it; use ZeRO"),
    "tensor_parallel": (None, _SHARDING, "remove it; use ZeRO"),
    "expert_parallel": (None, _SHARDING, "remove it"),
    "sequence_parallel_size": (1, _SHARDING, "remove it"),
    "hybrid_engine": (None, "is for reinforcement learning, not for pre-training", "remove it"),
    "autotuning": (None, "needs DeepSpeed's own launcher", "remove it"),
    "data_efficiency": (None, _ORDER, "remove it"),
    "managed_gradient_accumulation": (True, "takes the accumulation away from DeepSpeed", "remove it"),
    "weight_quantization": (None, "is for inference", "remove it"),
    "checkpoint.load_universal": (False, "would bypass the loading of states", "remove it"),
    "checkpoint.use_node_local_storage": (False, "would scatter a checkpoint over nodes", "remove it"),
    "datastates_ckpt": (None, "writes checkpoints that cannot be consolidated here", "remove it"),
    "bf16.bf16_master_weights_and_grads": (False, _MASTER, "remove it"),
    "bf16.bf16_optimizer_states": (False, _MASTER, "remove it"),
    "fp16.fp16_master_weights_and_grads": (False, _MASTER, "remove it"),
    "fp16.auto_cast": (False, "casts inputs that are whole numbers here", "remove it"),
    "zero_optimization.mics_shard_size": (None, f"was removed from DeepSpeed ({READ_FROM})", "remove it"),
    "zero_optimization.mics_hierarchical_params_gather": (
        None,
        f"was removed from DeepSpeed ({READ_FROM})",
        "remove it",
    ),
    "zero_optimization.zeropp_loco_param": (None, f"was removed from DeepSpeed ({READ_FROM})", "remove it"),
    "zero_optimization.zenflow": (None, "splits Adam's state in a way that cannot be consolidated here", "remove it"),
    "zero_optimization.cpu_offload": (False, "is deprecated", 'write "offload_optimizer": {"device": "cpu"}'),
    "zero_optimization.cpu_offload_param": (False, "is deprecated", 'write "offload_param": {"device": "cpu"}'),
}
"""Dotted key: the value that is harmless, what is wrong with any other, what to do instead."""
