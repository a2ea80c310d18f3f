"""Valid files of each kind, small and complete, in their own folder.

Imports are inside the functions, so that a worker only loads what it needs.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from stacking.storage.seal import sealed
from tests.fuzz.mutations import checked

Make = Callable[[Path], Path]
"""Fills a folder with valid files and names the one to mutate."""


def file_of(name: str, content: Callable[[], bytes]) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content())
        return folder / name

    return make


def recipe() -> bytes:
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


def site() -> bytes:
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


def ds_config() -> bytes:
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


def plan() -> bytes:
    import tempfile

    from stacking.config.recipe import load_recipe
    from stacking.planning.make_plan import make_plan
    from tests.small_recipe import MACHINE, MANIFEST, SAMPLES

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_bytes(recipe())
        made = make_plan(load_recipe(path), MANIFEST, SAMPLES, MACHINE)
    return json.dumps(sealed(made.model_dump(mode="json"))).encode()


def _weights() -> dict[str, Any]:
    import numpy as np

    return {f"layers.0.{name}": np.arange(12, dtype=np.float32).reshape(3, 4) for name in ("a", "b", "c")}


def safetensors() -> bytes:
    from safetensors.numpy import save

    return save(_weights(), {"format": "pt"})


def torch_file(legacy: bool = False) -> bytes:
    import torch

    buffer = io.BytesIO()
    module = {name: torch.from_numpy(values) for name, values in _weights().items()}
    value = {"module": module, "dp_world_size": 1, "ds_config": {"a": [1, 2.0, None]}, "step": 3}
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def json_lines() -> bytes:
    texts = ["One sentence. Another one.\n\nA paragraph.", "Ein Satz.", "", "x" * 100]
    return b"".join(json.dumps({"text": text, "id": number}).encode() + b"\n" for number, text in enumerate(texts))


def parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["One. Two.", None, "Three."] * 20, "id": list(range(60))}), buffer)
    return buffer.getvalue()


def metrics() -> bytes:
    shared = {"stage": 0, "samples": 8, "tokens": 256, "loss": 5.5, "seconds": 0.1, "time": 1.0}
    train = {"kind": "train", **shared, "learning_rate": 1e-3, "tokens_per_second": 10.0}
    records = [{**train, "step": step, "global_step": step} for step in range(1, 5)]
    evaluation = {**records[-1], "kind": "evaluation"}
    return b"".join(checked(json.dumps(record).encode()) + b"\n" for record in [*records, evaluation])


def journal() -> bytes:
    about = {"time": 1.0, "host": "node", "pid": 1}
    phase = {"phase": "train", "stage": 0, "world_size": 1, "attempt": 1}
    events = [
        {**about, "event": "created", "plan": "0" * 32, "samples": {"train": "0" * 32}, "name": "chaos"},
        {**about, "event": "started", **phase},
        {**about, "event": "failed", **phase, "seconds": 1.0, "message": "rank 0 ended"},
        {**about, "event": "resumed"},
        {**about, "event": "finished", **phase, "seconds": 1.0},
    ]
    return b"".join(json.dumps(sealed(event)).encode() + b"\n" for event in events)


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


def in_data(name: str) -> Make:
    def make(folder: Path) -> Path:
        shutil.copytree(_prepared(), folder, dirs_exist_ok=True)
        return folder / name

    return make


def in_state(name: str) -> Make:
    def make(folder: Path) -> Path:
        import numpy as np

        from stacking.model.config import ModelConfig
        from stacking.model.size import parameter_shapes
        from stacking.state.format import new_state

        model = ModelConfig(layers=1, hidden=4, heads=2, intermediate=8, vocabulary=12, max_positions=8)
        shapes = parameter_shapes(model)
        with new_state(folder / "state", shapes, moments=False, model=model) as append:
            for key, shape in shapes.items():
                append("weights", key, np.ones(shape, np.float32).reshape(-1))
        return folder / "state" / name

    return make


def bert_config() -> bytes:
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


def in_checkpoint(name: str) -> Make:
    """A checkpoint written by another program: no manifest vouches for its files."""

    def make(folder: Path) -> Path:
        from tests.state.checkpoints import write_checkpoint

        return write_checkpoint(folder / "checkpoint") / name

    return make


def progress(folder: Path) -> Path:
    """The record of the model next to a checkpoint of this project's own trainer."""
    from stacking.model.config import ModelConfig
    from stacking.model.size import parameter_shapes
    from tests.state.checkpoints import write_checkpoint

    model = ModelConfig(layers=1, hidden=2, heads=1, intermediate=3, vocabulary=5, max_positions=4)
    path = write_checkpoint(folder / "checkpoint", [dict(parameter_shapes(model))]) / "progress.json"
    path.write_text(json.dumps(sealed({"model": model.model_dump(), "step": 3})))
    return path


@cache
def _exported() -> Path:
    """A BERT as `stacking export` writes it, made once."""
    import tempfile

    from stacking.huggingface.export import export

    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    return export(in_state("manifest.json")(folder).parent, folder / "bert")


def in_bert(name: str) -> Make:
    """A folder for `stacking import` with a config and weights."""

    def make(folder: Path) -> Path:
        shutil.copytree(_exported(), folder / "bert", dirs_exist_ok=True)
        return folder / "bert" / name

    return make


def pickled_bert(folder: Path) -> Path:
    """The same with the weights in a pickle."""
    import torch
    from safetensors.torch import load_file

    weights = in_bert("model.safetensors")(folder)
    path = weights.with_name("pytorch_model.bin")
    torch.save(load_file(weights), path)
    weights.unlink()
    return path
