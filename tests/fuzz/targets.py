"""The readers that are fuzzed: a valid file of each kind, how to mutate it, and how to read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import mutations, pickles, readers, valid
from tests.fuzz.mutations import Mutation
from tests.fuzz.valid import Make, file_of


@dataclass(frozen=True)
class Target:
    """One reader."""

    make: Make
    mutate: Mutation
    read: Callable[[Path], object]


MODEL_FILE, SHARD_FILE = "mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"

TARGETS: Mapping[str, Target] = {
    "JSON": Target(file_of("any.json", valid.ds_config), mutations.json_values, readers.any_json),
    "JSON by hand": Target(file_of("any.json", valid.ds_config), mutations.json_values, readers.json_by_hand),
    "YAML": Target(file_of("any.yaml", valid.recipe), mutations.yaml_text, readers.any_yaml),
    "recipe": Target(file_of("recipe.yaml", valid.recipe), mutations.yaml_text, readers.recipe),
    "site": Target(file_of("site.yaml", valid.site), mutations.yaml_text, readers.site),
    "ds_config": Target(file_of("ds.json", valid.ds_config), mutations.json_values, readers.ds_config),
    "plan": Target(file_of("plan.json", valid.plan), mutations.sealed_values, readers.plan),
    "safetensors": Target(
        file_of("a.safetensors", valid.safetensors), mutations.safetensors_header, readers.safetensors
    ),
    "state manifest": Target(valid.in_state("manifest.json"), mutations.sealed_values, readers.state),
    "state weights": Target(valid.in_state("weights.safetensors"), mutations.safetensors_header, readers.sealed_state),
    "torch archive": Target(file_of("a.pt", valid.torch_file), mutations.torch_file, readers.torch_file),
    "torch file before 1.6": Target(
        file_of("a.pt", lambda: valid.torch_file(legacy=True)), mutations.bytes_anywhere, readers.torch_file
    ),
    "pickle of random opcodes": Target(file_of("a.pt", valid.torch_file), pickles.random_opcodes, readers.torch_file),
    "pickle of random objects": Target(file_of("a.pt", valid.torch_file), pickles.random_objects, readers.torch_file),
    "checkpoint: model file": Target(valid.in_checkpoint(MODEL_FILE), mutations.saved_values, readers.checkpoint),
    "checkpoint: shard": Target(valid.in_checkpoint(SHARD_FILE), mutations.saved_values, readers.checkpoint),
    "checkpoint: progress": Target(valid.progress, mutations.sealed_values, readers.sealed_checkpoint),
    "JSON lines": Target(file_of("text.jsonl", valid.json_lines), mutations.json_lines, readers.documents),
    "Parquet": Target(file_of("text.parquet", valid.parquet), mutations.bytes_anywhere, readers.documents),
    "text": Target(file_of("text.txt", valid.json_lines), mutations.bytes_anywhere, readers.documents),
    "metrics": Target(file_of("metrics.jsonl", valid.metrics), mutations.checked_lines, readers.metrics),
    "journal": Target(file_of("journal.jsonl", valid.journal), mutations.sealed_lines, readers.journal),
    "data manifest": Target(valid.in_data("manifest.json"), mutations.sealed_values, readers.data),
    "data shard": Target(valid.in_data("train/00000.sentences.npy"), mutations.bytes_anywhere, readers.sealed_data),
    "tokenizer": Target(valid.in_data("tokenizer.json"), mutations.json_values, readers.tokenizer),
    "vocabulary": Target(valid.in_data("vocab.txt"), mutations.bytes_anywhere, readers.tokenizer),
    "BERT config": Target(file_of("config.json", valid.bert_config), mutations.json_values, readers.bert_config),
    "BERT pickle": Target(valid.pickled_bert, mutations.saved_values, readers.imported),
    "BERT safetensors": Target(valid.in_bert("model.safetensors"), mutations.safetensors_header, readers.imported),
}
"""Every kind of file that somebody else may have written or something may have damaged."""
