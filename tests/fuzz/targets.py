"""The readers that are fuzzed: how to make a valid file of each kind, how to mutate it, how to read it.

A reader may return or raise `UserError`; nothing else. Imports are inside, so that a worker loads what it needs.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from stacking.storage.seal import sealed
from tests.fuzz import mutations
from tests.fuzz.mutations import Mutation


@dataclass(frozen=True)
class Target:
    """One reader."""

    make: Callable[[Path], Path]
    """Fills a folder with valid files and names the one to mutate."""
    mutate: Mutation
    read: Callable[[Path], object]
    """Reads the mutated file, all of it."""


def _file(name: str, content: Callable[[], bytes]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content())
        return folder / name

    return make


# Valid files


def _recipe() -> bytes:
    return b"""name: small
model: {hidden: 64, heads: 2, max_positions: 64}
data: {sequence_length: 32}
optimizer: {betas: [0.9, 0.999], weight_decay: 0.01}
schedule: {kind: warmup-stable-decay, peak: 0.001, warmup_steps: 2}
growth: {operator: stack, optimizer_state: copy}
stages:
  - {layers: 2, steps: 10, batch_sequences: 8}
  - {layers: 4, tokens: 10000, growth: {operator: interleave}, resources: {nodes: 1, hours: 1}}
ds_config: {zero_optimization: {stage: 2}}
launch: {launcher: local, accelerator: cpu, ranks: 2}
checkpoint: {every_steps: 5}
"""


def _site() -> bytes:
    return b"""account: bert
partition: gpu
options: [--mail-type=FAIL]
ranks_per_node: 4
memory: 16G
hours: 12
transition: {cores: 2, hours: 1}
modules: [cuda/12.4]
environment: {NCCL_DEBUG: WARN}
prelude: ["source /opt/venv/bin/activate"]
scratch: /scratch/$USER
container: [apptainer, exec]
"""


def _ds_config() -> bytes:
    return json.dumps(
        {
            "train_batch_size": 64,
            "train_micro_batch_size_per_gpu": 4,
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.999], "eps": 1e-6}},
            "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}},
            "gradient_clipping": 1.0,
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "reduce_bucket_size": 5e8},
            "wall_clock_breakdown": False,
        }
    ).encode()


def _plan() -> bytes:
    import tempfile

    from stacking.config.recipe import load_recipe
    from stacking.planning.make_plan import make_plan
    from tests.small_recipe import MACHINE, MANIFEST, SAMPLES

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_bytes(_recipe())
        plan = make_plan(load_recipe(path), MANIFEST, SAMPLES, MACHINE)
    return json.dumps(sealed(plan.model_dump(mode="json"))).encode()


def _weights() -> dict[str, Any]:
    import numpy as np

    return {f"layers.0.{name}": np.arange(12, dtype=np.float32).reshape(3, 4) for name in ("a", "b", "c")}


def _safetensors() -> bytes:
    from safetensors.numpy import save

    return save(_weights())


def _torch_file() -> bytes:
    import torch

    buffer = io.BytesIO()
    module = {name: torch.from_numpy(values) for name, values in _weights().items()}
    torch.save({"module": module, "dp_world_size": 1, "ds_config": {"a": [1, 2.0, None]}, "step": 3}, buffer)
    return buffer.getvalue()


def _json_lines() -> bytes:
    texts = ["One sentence. Another one.\n\nA paragraph.", "Ein Satz.", "", "x" * 100]
    return b"".join(json.dumps({"text": text, "id": number}).encode() + b"\n" for number, text in enumerate(texts))


def _parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["One. Two.", None, "Three."] * 20, "id": list(range(60))}), buffer)
    return buffer.getvalue()


def _metrics() -> bytes:
    shared = {"stage": 0, "samples": 8, "tokens": 256, "loss": 5.5, "seconds": 0.1, "time": 1.0}
    train = {"kind": "train", **shared, "learning_rate": 1e-3, "tokens_per_second": 10.0}
    records = [{**train, "step": step, "global_step": step} for step in range(1, 5)]
    return b"".join(json.dumps(record).encode() + b"\n" for record in [*records, {**records[-1], "kind": "evaluation"}])


def _journal() -> bytes:
    about = {"time": 1.0, "host": "node", "pid": 1}
    phase = {"phase": "train", "stage": 0, "world_size": 1, "attempt": 1}
    events = [
        {**about, "event": "created", "plan": "0" * 32, "samples": {"train": "0" * 32}, "name": "chaos"},
        {**about, "event": "started", **phase},
        {**about, "event": "failed", **phase, "seconds": 1.0, "message": "rank 0 ended"},
        {**about, "event": "resumed"},
        {**about, "event": "finished", **phase, "seconds": 1.0},
    ]
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


@cache
def _prepared() -> Path:
    """Prepared data, made once."""
    import tempfile

    from stacking.data.prepare import prepare

    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    words = ["river", "stone", "lamp", "garden", "window", "letter"]
    documents = [" ".join(f"The {words[(n + m) % 6]} is near." for m in range(6)) for n in range(20)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    prepare([str(folder / "text.jsonl")], folder / "data", vocabulary_size=100, held_out=0.2, workers=1)
    return folder / "data"


def _in_data(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        shutil.copytree(_prepared(), folder, dirs_exist_ok=True)
        return folder / name

    return make


def _in_state(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import numpy as np

        from stacking.model.config import ModelConfig
        from stacking.model.size import parameter_shapes
        from stacking.state.format import StateWriter

        model = ModelConfig(layers=1, hidden=4, heads=2, intermediate=8, vocabulary=12, max_positions=8)
        shapes = parameter_shapes(model)
        with StateWriter(folder / "state", shapes, moments=False, model=model) as writer:
            for key, shape in shapes.items():
                writer.append("weights", key, np.ones(shape, np.float32).reshape(-1))
        return folder / "state" / name

    return make


def _bert_config() -> bytes:
    return json.dumps(
        {
            "model_type": "bert",
            "architectures": ["BertForPreTraining"],
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "vocab_size": 30,
            "max_position_embeddings": 16,
            "type_vocab_size": 2,
            "layer_norm_eps": 1e-12,
            "pad_token_id": 0,
        }
    ).encode()


# Readers


def _read_recipe(path: Path) -> object:
    from stacking.config.recipe import load_recipe

    return load_recipe(path)


def _read_site(path: Path) -> object:
    from stacking.slurm.site import load_site

    return load_site(path)


def _read_ds_config(path: Path) -> object:
    from stacking.deepspeed_config.ds_config import load

    return load(str(path), "recipe.yaml: ds_config", path.parent)


def _read_plan(path: Path) -> object:
    from stacking.planning.plan import load_plan

    return load_plan(path)


def _read_json(path: Path) -> object:
    from stacking.storage.files import read_json

    return read_json(path)


def _read_safetensors(path: Path) -> object:
    from stacking.storage.safetensors_file import SafetensorsFile

    file = SafetensorsFile.open(path)
    return [file.read(name) for name in file.specs]


def _read_state(path: Path) -> object:
    from stacking.state.format import State

    return State(path.parent)


def _read_torch_file(path: Path) -> object:
    from stacking.storage.torch_file import read_torch_file

    return read_torch_file(path)


def _read_documents(path: Path) -> object:
    from stacking.data.readers import TextFile, documents

    format = "parquet" if path.suffix == ".parquet" else "jsonl"
    return sum(1 for _ in documents(TextFile(path, format)))


def _read_metrics(path: Path) -> object:
    from stacking.run.metrics import read_metrics

    return read_metrics(path)


def _read_journal(path: Path) -> object:
    from stacking.run.journal import Journal

    return Journal(path).events()


def _read_data(path: Path) -> object:
    from stacking.data.corpus import Corpus

    folder = next(parent for parent in path.parents if (parent / "held_out").is_dir())
    return Corpus(folder).digest


def _read_tokenizer(path: Path) -> object:
    from stacking.data.given import load

    return load(path.parent)


def _read_bert_config(path: Path) -> object:
    from stacking.huggingface.names import from_hugging_face
    from stacking.storage.files import read_json

    return from_hugging_face(read_json(path), path)


TARGETS: Mapping[str, Target] = {
    "json": Target(_file("any.json", _ds_config), mutations.json_values, _read_json),
    "recipe": Target(_file("recipe.yaml", _recipe), mutations.yaml_text, _read_recipe),
    "site": Target(_file("site.yaml", _site), mutations.yaml_text, _read_site),
    "ds_config": Target(_file("ds.json", _ds_config), mutations.json_values, _read_ds_config),
    "plan": Target(_file("plan.json", _plan), mutations.sealed_values, _read_plan),
    "safetensors": Target(_file("a.safetensors", _safetensors), mutations.safetensors_header, _read_safetensors),
    "state manifest": Target(_in_state("manifest.json"), mutations.json_values, _read_state),
    "state weights": Target(_in_state("weights.safetensors"), mutations.safetensors_header, _read_state),
    "checkpoint": Target(_file("model_states.pt", _torch_file), mutations.torch_file, _read_torch_file),
    "json lines": Target(_file("text.jsonl", _json_lines), mutations.json_lines, _read_documents),
    "parquet": Target(_file("text.parquet", _parquet), mutations.bytes_anywhere, _read_documents),
    "text": Target(_file("text.txt", _json_lines), mutations.bytes_anywhere, _read_documents),
    "metrics": Target(_file("metrics.jsonl", _metrics), mutations.json_lines, _read_metrics),
    "journal": Target(_file("journal.jsonl", _journal), mutations.json_lines, _read_journal),
    "data manifest": Target(_in_data("manifest.json"), mutations.json_values, _read_data),
    "data shard": Target(_in_data("train/00000.sentences.npy"), mutations.bytes_anywhere, _read_data),
    "tokenizer": Target(_in_data("tokenizer.json"), mutations.json_values, _read_tokenizer),
    "vocabulary": Target(_in_data("vocab.txt"), mutations.bytes_anywhere, _read_tokenizer),
    "BERT config": Target(_file("config.json", _bert_config), mutations.json_values, _read_bert_config),
}
