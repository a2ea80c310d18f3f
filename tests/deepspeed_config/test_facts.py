"""The table of facts matches the installed DeepSpeed, whichever version that is."""

from __future__ import annotations

import json
import subprocess
import sys

from stacking.deepspeed_config.ds_facts import (
    AUTO_KEYS,
    CHOICES,
    EFFECTS,
    POSITIVE_KEYS,
    REMOVED_KEYS,
    UNSUPPORTED,
    WITHOUT_EFFECT,
)
from stacking.deepspeed_config.facts import FACTS_FILE, SECTIONS, TOP
from stacking.deepspeed_config.names import MEANINGS, RENAMED, known_keys

GENERATED = "import json; from tools.deepspeed_facts import facts; print(json.dumps(facts()))"


def is_known(path: str) -> bool:
    section, _, name = path.rpartition(".")
    return name in known_keys(section) or path in SECTIONS


def test_the_facts_match_the_installed_version() -> None:
    done = subprocess.run([sys.executable, "-c", GENERATED], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    again = "run python -m tools.deepspeed_facts, and look at what changed"
    assert found == json.loads(FACTS_FILE.read_text()), again
    assert set(found["removed"]) == set(REMOVED_KEYS), "a key was removed from DeepSpeed: say what to do instead"


def test_hand_written_tables_only_name_existing_keys() -> None:
    paths = [*AUTO_KEYS, *CHOICES, *POSITIVE_KEYS, *WITHOUT_EFFECT, *RENAMED.values(), *MEANINGS.values()]
    paths += [path for path in UNSUPPORTED if "mics" not in path and "loco" not in path]
    paths += [path for path in EFFECTS if path and path not in ("optimizer", "optimizer.params", "stacking")]
    unknown = [path for path in paths if not is_known(path) and not path.startswith("optimizer.params.")]
    assert unknown == []


def test_sections_are_described_at_every_depth() -> None:
    assert "stage" in SECTIONS["zero_optimization"] and "ratio" in SECTIONS["zero_optimization.offload_optimizer"]
    assert "pipeline_stage" in SECTIONS["checkpoint.parallel_write"]
    assert "profile_step" in SECTIONS["flops_profiler"] and "dump_state" in TOP
