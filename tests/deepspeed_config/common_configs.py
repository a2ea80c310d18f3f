"""DeepSpeed configurations like those that people have: realistic sections and values, invented here."""

from __future__ import annotations

from typing import Any

_AUTO_BATCH = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
}
_AUTO_FP16 = {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2}
_AUTO_ADAM = {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}}
_AUTO_DECAY = {
    "type": "WarmupDecayLR",
    "params": dict.fromkeys(("warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "total_num_steps"), "auto"),
}
_Z2 = {"stage": 2, "allgather_partitions": True, "allgather_bucket_size": 2e8, "overlap_comm": True,
       "reduce_scatter": True, "reduce_bucket_size": 2e8, "contiguous_gradients": True}  # fmt: skip
_Z3 = {"stage": 3, "overlap_comm": True, "contiguous_gradients": True, "sub_group_size": 1e9,
       "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto",
       "stage3_param_persistence_threshold": "auto", "stage3_max_live_parameters": 1e9,
       "stage3_max_reuse_distance": 1e9, "stage3_gather_16bit_weights_on_model_save": True}  # fmt: skip


def _adam(name: str = "Adam", **params: Any) -> dict[str, Any]:
    return {"type": name, "params": params}


CONFIGS: dict[str, dict[str, Any]] = {
    "bing_bert": {
        "train_batch_size": 4096, "train_micro_batch_size_per_gpu": 64, "steps_per_print": 1000,
        "optimizer": _adam(lr=4e-3, weight_decay=0.01, bias_correction=False, max_grad_norm=1.0),
        "prescale_gradients": True, "gradient_predivide_factor": 8, "gradient_clipping": 1.0,
        "wall_clock_breakdown": False, "fp16": {"enabled": True, "loss_scale": 0},
    },
    "bing_bert, LAMB": {
        "train_batch_size": 65536, "train_micro_batch_size_per_gpu": 64,
        "optimizer": _adam("Lamb", lr=11e-3, weight_decay=0.01, bias_correction=False, max_coeff=0.3, min_coeff=0.01),
        "fp16": {"enabled": True}, "sparse_attention": {"mode": "fixed", "block": 16},
    },
    "bing_bert, 1-bit Adam": {
        "train_batch_size": 4096, "train_micro_batch_size_per_gpu": 16,
        "optimizer": _adam("OneBitAdam", lr=4e-4, freeze_step=23000, cuda_aware=False, comm_backend_name="nccl"),
        "gradient_clipping": 1.0, "fp16": {"enabled": True, "initial_scale_power": 16},
    },
    "bing_bert, layers dropped": {
        "train_batch_size": 4096, "train_micro_batch_size_per_gpu": 16,
        "optimizer": _adam(lr=1e-3, weight_decay=0.01), "fp16": {"enabled": True},
        "progressive_layer_drop": {"enabled": True, "theta": 0.5, "gamma": 0.001},
    },
    "squad": {
        "train_batch_size": 24, "train_micro_batch_size_per_gpu": 3, "steps_per_print": 10,
        "optimizer": _adam(lr=3e-5, weight_decay=0.0, bias_correction=False), "gradient_clipping": 1.0,
        "fp16": {"enabled": True},
    },
    "Habana BERT": {
        "train_batch_size": 8192, "train_micro_batch_size_per_gpu": 32, "steps_per_print": 100,
        "bf16": {"enabled": True, "immediate_grad_update": True}, "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 1, "overlap_comm": False, "contiguous_gradients": False,
                              "reduce_scatter": False},
    },
    "Habana, old bf16": {
        "train_batch_size": 256, "bfloat16": {"enabled": True}, "zero_allow_untested_optimizer": True,
        "optimizer": _adam("AdamW", lr=2e-4), "data_types": {"grad_accum_dtype": "bf16"},
        "zero_optimization": {"stage": 2},
    },
    "Megatron, cosine": {
        "train_batch_size": 256, "train_micro_batch_size_per_gpu": 4, "steps_per_print": 10,
        "zero_optimization": {"stage": 1}, "gradient_clipping": 1.0, "prescale_gradients": False,
        "optimizer": _adam("Adam", lr=6e-4, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1),
        "scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 300, "warmup_num_steps": 30}},
        "fp16": {"enabled": True, "loss_scale": 0, "loss_scale_window": 500, "hysteresis": 2, "min_loss_scale": 1,
                 "initial_scale_power": 11},
        "wall_clock_breakdown": False, "zero_allow_untested_optimizer": False,
    },
    "Megatron, curriculum": {
        "train_batch_size": 512, "train_micro_batch_size_per_gpu": 8, "fp16": {"enabled": True},
        "curriculum_learning": {"enabled": True, "curriculum_type": "seqlen", "min_difficulty": 8},
    },
    "Megatron, activation checkpointing": {
        "train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 1, "zero_optimization": _Z2,
        "activation_checkpointing": {"partition_activations": True, "cpu_checkpointing": False,
                                     "contiguous_memory_optimization": False, "number_checkpoints": None},
        "fp16": {"enabled": True},
    },
    "GLM": {
        "train_micro_batch_size_per_gpu": 16, "gradient_accumulation_steps": 1, "steps_per_print": 100,
        "gradient_clipping": 1.0,
        "fp16": {"enabled": True, "loss_scale": 0, "loss_scale_window": 1000, "hysteresis": 2, "min_loss_scale": 1},
        "optimizer": _adam("Adam", lr=1e-4, betas=[0.9, 0.98], eps=1e-6, weight_decay=0.1),
        "activation_checkpointing": {"partition_activations": False, "contiguous_memory_optimization": False},
        "wall_clock_breakdown": False,
    },
    "GLM, ZeRO as a flag": {
        "train_micro_batch_size_per_gpu": 4, "zero_optimization": True, "allgather_size": 500000000,
        "optimizer": _adam("Adam", lr=1.5e-4), "fp16": {"enabled": True},
    },
    "Trainer, ZeRO 2": {
        "fp16": _AUTO_FP16, "bf16": {"enabled": "auto"}, "optimizer": _AUTO_ADAM, "scheduler": _AUTO_DECAY,
        "zero_optimization": {**_Z2, "offload_optimizer": {"device": "cpu", "pin_memory": True}},
        "gradient_clipping": "auto", "steps_per_print": 2000, **_AUTO_BATCH,
    },
    "Trainer, ZeRO 3": {
        "fp16": _AUTO_FP16, "bf16": {"enabled": "auto"}, "optimizer": _AUTO_ADAM, "scheduler": _AUTO_DECAY,
        "zero_optimization": {**_Z3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}},
        "gradient_clipping": "auto", **_AUTO_BATCH,
    },
    "Trainer, rates of its own": {
        **_AUTO_BATCH, "optimizer": _adam("AdamW", lr=3e-5, betas=[0.8, 0.999], eps=1e-8, weight_decay=3e-7),
        "scheduler": {"type": "WarmupLR",
                      "params": {"warmup_min_lr": 0, "warmup_max_lr": 3e-5, "warmup_num_steps": 50}},
        "zero_optimization": _Z2, "fp16": {"enabled": False},
    },
    "Trainer, everything automatic": {
        **_AUTO_BATCH, "zero_optimization": {**_Z3, "stage": 2, "sub_group_size": "auto"},
        "bf16": {"enabled": "auto"}, "fp16": {"enabled": False}, "zero_allow_untested_optimizer": True,
    },
    "Accelerate": {
        **_AUTO_BATCH, "steps_per_print": float("inf"), "gradient_clipping": "auto", "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "none", "nvme_path": None},
                              "offload_param": {"device": "none", "nvme_path": None},
                              "stage3_gather_16bit_weights_on_model_save": True},
    },
    "Accelerate, compiled": {
        "train_micro_batch_size_per_gpu": 4, "compile": {"enabled": True, "backend": "inductor"},
        "zero_optimization": {"stage": 2},
    },
    "chat, hybrid engine": {
        "train_batch_size": 32, "train_micro_batch_size_per_gpu": 4, "hybrid_engine": {"enabled": True},
        "zero_optimization": {"stage": 3, "offload_param": {"device": "none"}, "memory_efficient_linear": False},
        "fp16": {"enabled": True, "loss_scale_window": 100},
        "tensorboard": {"enabled": False, "output_path": "ds_tensorboard", "job_name": "step1"},
    },
    "infinity": {
        "train_micro_batch_size_per_gpu": 2, "zero_optimization": {
            "stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/local_nvme", "buffer_count": 5},
            "offload_optimizer": {"device": "nvme", "nvme_path": "/local_nvme", "pipeline_read": True}},
        "aio": {"block_size": 262144, "queue_depth": 32, "thread_count": 1, "single_submit": False},
        "fp16": {"enabled": True},
    },
    "offload, old": {
        "train_batch_size": 64, "zero_optimization": {
            "stage": 2, "cpu_offload": True, "cpu_offload_use_pin_memory": True, "overlap_comm": True,
            "find_unused_parameters": True},
        "optimizer": _adam("DeepSpeedCPUAdam", lr=1e-4, adamw_mode=True), "fp16": {"enabled": True},
    },
    "offload at the wrong stage": {
        "train_batch_size": 64, "zero_optimization": {
            "stage": 2, "offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu", "ratio": 0.3}},
    },
    "apex": {
        "train_batch_size": 64, "amp": {"enabled": True, "opt_level": "O2"}, "fp32_allreduce": True,
        "optimizer": _adam("FusedAdam", lr=1e-4, set_grad_none=True),
    },
    "ZeRO++": {
        "train_micro_batch_size_per_gpu": 4, "bf16": {"enabled": True}, "zero_optimization": {
            "stage": 3, "zero_hpz_partition_size": 8, "zero_quantized_weights": True,
            "zero_quantized_gradients": True}},
    "text for numbers": {
        "train_micro_batch_size_per_gpu": "4", "gradient_clipping": "1.0", "zero_optimization": {"stage": "1"},
        "fp16": {"enabled": "false"}, "steps_per_print": 100.0, "communication_data_type": None,
        "optimizer": _adam("AdamW", lr="1e-4", betas=["0.9", "0.98"]),
    },
    "comments": {
        "_comment": "for the small machine", "//": "later", "#off": {"bf16": {"enabled": True}},
        "train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 1, "_why": "enough"},
    },
    "one cycle": {
        "train_batch_size": 64, "optimizer": _adam("Adam", lr=1e-3),
        "scheduler": {"type": "OneCycle", "params": {
            "cycle_min_lr": 1e-5, "cycle_max_lr": 1e-3, "cycle_first_step_size": 100, "decay_lr_rate": 0.1,
            "decay_step_size": 10, "cycle_min_mom": 0.85, "cycle_max_mom": 0.99}},
    },
    "range test": {
        "train_batch_size": 64, "optimizer": _adam("Adam", lr=1e-3),
        "scheduler": {"type": "LRRangeTest", "params": {"lr_range_test_min_lr": 1e-4}},
    },
    "misspelt": {
        "train_batchsize": 64, "max_grad_norm": 1.0, "bp16": {"enabled": True}, "checkpointing": {},
        "optimizer": {"type": "AdamW", "eps": 1e-8, "params": {"lr": 1e-4, "weightdecay": 0.1}},
        "zero_optimization": {"stage": 2, "offload_optimiser": {"device": "cpu"}}, "logging": {"level": "info"},
    },
    "monitors": {
        "train_batch_size": 64, "wandb": {"enabled": True, "project": "berts"}, "comet": {"enabled": False},
        "csv_monitor": {"enabled": True, "output_path": "csv", "job_name": "berts"},
        "flops_profiler": {"enabled": True, "profile_step": 5, "module_depth": -1, "top_modules": 3,
                           "detailed": True, "output_file": None},
        "comms_logger": {"enabled": False, "verbose": False}, "dump_state": True, "memory_breakdown": True,
    },
    "Megatron, older still": {
        "train_batch_size": 16, "zero_optimization": {"stage": 2, "cpu_offload": True, "comm_overlap": True},
        "communication_data_type": "bfp16", "bfloat16": {"enabled": True, "loss_scale": 1.0},
        "fp16": {"enabled": False, "auto_cast": True}, "gradient_accumulation": 1, "cuda_visible_devices": 0,
    },
    "made for a newer program": {
        "train_micro_batch_size_per_gpu": "auto", "fp8": {"enabled": True}, "sequence_parallel": {"size": 4},
        "monitor_config": {"csv_monitor": {"enabled": False}}, "zero3_init_flag": True,
        "bf16": {"enabled": True, "auto_cast": False, "hysteresis": 2}, "zero_optimization": {"stage": 3},
    },
    "Trainer, 2021": {
        "fp16": {"enabled": True, "loss_scale": 0}, "steps_per_print": 2000,
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"},
                              "sub_group_size": 1e14, "reduce_bucket_size": 0, "stage3_prefetch_bucket_size": 0,
                              "stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0,
                              "stage3_gather_fp16_weights_on_model_save": True},
    },
    "switches without sections": {"fp16": False, "bf16": True, "flops_profiler": True, "tensorboard": False},
    "compression": {
        "train_batch_size": 64, "compression_training": {"weight_quantization": {"shared_parameters": {}}},
        "eigenvalue": {"enabled": False}, "quantize_training": {"enabled": True}, "nebula": {"enabled": False},
        "elasticity": {"enabled": False, "max_train_batch_size": 2000}, "autotuning": {"enabled": False, "fast": True},
    },
    "pipeline": {
        "train_batch_size": 256, "train_micro_batch_size_per_gpu": 8, "pipeline": {"stages": 2},
        "optimizer": _adam("SGD", lr=0.1, momentum=0.9), "fp16": {"enabled": True, "auto_cast": True},
    },
    "numbers that do not fit": {"train_batch_size": 100, "train_micro_batch_size_per_gpu": 30,
                                "gradient_accumulation_steps": 3},
    "MoE": {
        "train_batch_size": 64, "zero_optimization": {"stage": 2}, "expert_parallel": {"enabled": True},
        "tensor_parallel": {"autotp_size": 2}, "sequence_parallel_size": 2, "bf16": {"enabled": True},
        "data_efficiency": {"enabled": True, "seed": 1234},
    },
    "CoLLiE, monitors in a section": {
        "bf16": {"enabled": True}, "monitor_config": {
            "enabled": True, "tag": "run-1", "csv_monitor": {"enabled": True, "output_path": "csv"},
            "tensorboard": {"enabled": False}, "wandb": {"enabled": False, "project": "berts"}},
    },
    "a cosine with rates": {
        "train_batch_size": 64, "optimizer": _adam("AdamW", lr="auto", betas=[0.9, 0.95]),
        "scheduler": {"type": "WarmupCosineLR", "params": {
            "warmup_min_lr": 3e-5, "warmup_max_lr": "3e-4", "warmup_num_steps": 200, "total_num_steps": 2000}},
    },
    "PyTorch's schedule, Python's True": {
        "train_batch_size": 440, "train_micro_batch_size_per_gpu": 55, "fp16": {"enabled": "True,"},
        "scheduler": {"type": "CosineAnnealingLR", "params": {"eta_min": 1e-5, "T_max": 500000}},
    },
    "autotuning, lists of one": {
        "train_micro_batch_size_per_gpu": [4], "zero_optimization": {
            "stage": "1", "overlap_comm": [False], "reduce_bucket_size": [5e8], "offload_optimizer": None},
    },
    "offload by a word": {
        "zero_optimization": {"stage": 3, "offload_optimizer": "cpu", "offload_param": "none"},
        "optimizer": _adam("CPUAdam", lr=[2e-5]), "lora": {"enabled": True, "rank": 32},
    },
    "no warm-up": {
        "train_batch_size": 64, "optimizer": _adam("Adam", lr=1e-3),
        "scheduler": {"type": "warmuplr", "params": {"warmup_num_steps": 0, "warmup_max_lr": "auto"}},
    },
    "automatic mixed precision of PyTorch": {
        "train_batch_size": 16, "torch_autocast": {"enable": True, "dtype": "bfloat16"},
        "bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True},
    },
}  # fmt: skip
"""Name: the file's content."""
