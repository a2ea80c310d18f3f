"""One configuration per section, for ``docs/ds_config.md``; a test trains with each of them on two ranks."""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES: Mapping[str, str] = {
    "": """\
{
  "train_batch_size": 256, "train_micro_batch_size_per_gpu": 32,
  "gradient_clipping": 1.0, "communication_data_type": "fp32", "wall_clock_breakdown": true
}""",
    "activation_checkpointing": '{"activation_checkpointing": {"partition_activations": true}}',
    "bf16": '{"bf16": {"enabled": true}}',
    "checkpoint": '{"checkpoint": {"tag_validation": "Fail"}}',
    "comms_logger": '{"comms_logger": {"enabled": true, "verbose": false, "prof_all": true}}',
    "csv_monitor": '{"csv_monitor": {"enabled": true, "output_path": "csv", "job_name": "bert"}}',
    "data_types": '{"data_types": {"grad_accum_dtype": "fp32"}, "zero_optimization": {"stage": 1}}',
    "flops_profiler": '{"flops_profiler": {"enabled": true, "profile_step": 1, "output_file": "flops.txt"}}',
    "fp16": '{"fp16": {"enabled": true, "initial_scale_power": 12, "loss_scale_window": 500, "hysteresis": 2}}',
    "optimizer": """\
{"optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.01}}}""",
    "scheduler": """\
{
  "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
  "scheduler": {"type": "WarmupCosineLR", "params": {"warmup_num_steps": 1000, "total_num_steps": "auto"}}
}""",
    "stacking": '{"stacking": {"activation_checkpointing": true, "compile": false}}',
    "tensorboard": '{"tensorboard": {"enabled": true, "output_path": "boards", "job_name": "bert"}}',
    "timers": '{"timers": {"throughput": {"enabled": false}}}',
    "zero_optimization": '{"zero_optimization": {"stage": 2, "reduce_bucket_size": 5e7, "overlap_comm": true}}',
    "zero_optimization.offload_optimizer": """\
{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": true}}}""",
    "zero_optimization.offload_param": """\
{"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}}}""",
}
"""By dotted section; ``""`` is the top."""
