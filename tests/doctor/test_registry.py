"""All checks together: on any facts they give sensible findings, and none of them can break a visit."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from stacking.doctor.checks.registry import CHECKS, examine
from stacking.doctor.facts import Facts
from stacking.doctor.finding import LEVELS, Finding, worst
from stacking.doctor.gather import ALWAYS, OPTIONAL
from tests.doctor.sample_machines import A100, H200, P40, V100, machine, plan_for


def test_with_no_facts_at_all_nothing_breaks() -> None:
    assert [finding for finding in examine(Facts()) if "check itself" in finding.found] == []


def test_a_healthy_machine_has_no_warnings() -> None:
    for facts in (machine(A100), machine(H200, plan=plan_for("bf16", device="h200"))):
        assert worst(examine(facts)) == "ok"


def test_a_check_that_breaks_is_a_finding_and_stops_no_other() -> None:
    def breaks(facts: Facts) -> list[Finding]:
        raise KeyError("x")

    first, second = examine(Facts(), {"broken": breaks, "fine": lambda facts: iter([Finding("ok", "a", "b")])})  # type: ignore[dict-item]
    assert (first.level, first.what) == ("warning", "broken") and "KeyError" in first.found
    assert second.level == "ok"


@settings(deadline=None, max_examples=60)
@given(
    gpus=st.lists(st.sampled_from([P40, V100, A100, H200]), max_size=3),
    lost=st.sets(st.sampled_from(["torch", "deepspeed", "packages", "tools", "host", "folder", "gpus"])),
    precision=st.sampled_from(["fp32", "fp16", "bf16", None]),
)
def test_every_finding_is_one_line_whichever_facts_are_missing(
    gpus: list[object], lost: set[str], precision: str | None
) -> None:
    plan = plan_for(precision) if precision else None
    facts = machine(*gpus, plan=plan, failures=dict.fromkeys(lost, "no answer for 90 s"))  # type: ignore[arg-type]
    blank = Facts()
    facts = facts.model_copy(update={name: getattr(blank, name) for name in lost})
    for finding in examine(facts):
        assert finding.level in LEVELS and "check itself failed" not in finding.found
        assert finding.found and "\n" not in finding.found + finding.advice
        assert finding.advice or finding.level in ("ok", "note")


def test_every_section_of_the_probe_belongs_to_the_facts() -> None:
    assert {*ALWAYS, *OPTIONAL} <= set(Facts.model_fields)
    assert len(CHECKS) == len(set(CHECKS.values()))
