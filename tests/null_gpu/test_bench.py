"""The verdict on the results of gpu_bench. The results themselves need a CUDA build of PyTorch: tools/prove_gpu."""

from __future__ import annotations

from typing import Any

from tools.benchmarks.gpu import NAMES
from tools.benchmarks.gpu_cases import CASES
from tools.benchmarks.gpu_page import OPERATORS
from tools.benchmarks.gpu_programs import PROGRAMS
from tools.null_gpu.bench import missing


def complete() -> dict[str, Any]:
    steps = {
        name: {"outcome": "measured", "measurements": {"stacking": {}, **{other: {} for other in case.against}}}
        for name, case in CASES.items()
    }
    kernels = [{"group": "Adam", "name": "torch", "seconds": 1.0, "message": ""}]
    programs = {name: {"outcome": "measured", "message": ""} for name in PROGRAMS}
    return {**steps, OPERATORS: {"rows": kernels, "message": ""}, **programs}


def test_results_that_hold_every_case_lack_nothing() -> None:
    assert missing("A100", complete()) == []


def test_every_case_that_is_not_there_is_named() -> None:
    assert missing("A100", {}) == [f"no row of {name}" for name in NAMES]


def test_a_contender_that_is_not_there_is_named_with_the_reason() -> None:
    cases = complete()
    del cases["base-128"]["measurements"]["hugging-face"]
    cases["base-128"]["lost"] = {"hugging-face": "failed: no memory"}
    assert missing("A100", cases) == ["base-128: no hugging-face: failed: no memory"]


def test_what_fails_is_named_with_its_message() -> None:
    cases = complete()
    cases["large-512"] = {"outcome": "failed", "message": "ended early"}
    cases["tune"] = {"outcome": "failed", "message": "took longer than 5 s"}
    cases[OPERATORS]["rows"].append({"group": "LAMB", "name": "torch", "seconds": None, "message": "no kernel"})
    told = ["large-512: failed: ended early", "LAMB, torch: no kernel", "tune: took longer than 5 s"]
    assert missing("A100", cases) == told


def test_compiled_models_may_be_missing_where_triton_makes_no_code() -> None:
    cases = complete()
    del cases["base-128"]["measurements"]["hugging-face-compiled"]
    cases["base-128"]["lost"] = {"hugging-face-compiled": "failed: sm_61"}
    assert missing("P40", cases) == []
    for card in ("V100", "A100"):
        assert missing(card, cases) == ["base-128: no hugging-face-compiled: failed: sm_61"]
