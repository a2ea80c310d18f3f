"""DeepSpeed's kernels beside PyTorch's, as far as that can be tested without a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.benchmarks import deepspeed_ops


@pytest.mark.parametrize(("more", "names"), [([], ["torch", "DeepSpeed X"]), (["--no-deepspeed"], ["torch"])])
def test_what_deepspeed_would_compile_can_be_left_out(
    more: list[str], names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A kernel needs a GPU: a stand-in gives a row without one.
    def measured(group: str, name: str, make: Any) -> dict[str, Any]:
        return {"group": group, "name": name}

    monkeypatch.setattr(deepspeed_ops, "measured", measured)
    monkeypatch.setattr(deepspeed_ops, "OPERATIONS", [("Adam", "torch", None), ("Adam", "DeepSpeed X", None)])
    assert deepspeed_ops.main([str(tmp_path / "rows.json"), *more]) == 0
    assert [row["name"] for row in json.loads((tmp_path / "rows.json").read_text())] == names


def test_why_a_kernel_cannot_be_had_is_the_compilers_first_error() -> None:
    built = RuntimeError("Error building extension 'x': [1/3] nvcc -c\nx.cu(3): error: no such type\nninja: stopped")
    assert deepspeed_ops.reason(built) == "x.cu(3): error: no such type"
    assert deepspeed_ops.reason(RuntimeError("[1/3] nvcc -c\nsh: nvcc: not found")) == "sh: nvcc: not found"
    assert deepspeed_ops.reason(ValueError("no\n  kernel image")) == "no kernel image"
    assert deepspeed_ops.reason(ValueError()) == "ValueError"
