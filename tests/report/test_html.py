from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stacking.errors import UserError
from stacking.report.html import write_report
from tests.report.synthetic import SyntheticRun

VOID = {"meta", "br", "img", "link", "hr", "input"}


class Page(HTMLParser):
    """Collects what a page refers to, its text, and whether its elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(run: SyntheticRun) -> Page:
    path = write_report(run.path)
    assert path == run.path.absolute() / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


@pytest.fixture
def run(tmp_path: Path) -> SyntheticRun:
    return SyntheticRun(tmp_path / "run", steps=(30, 30, 30))


def only_created(run: SyntheticRun) -> None:
    pass


def in_its_first_update(run: SyntheticRun) -> None:
    run.event("started", phase="train", stage=0, attempt=1)


def one_record(run: SyntheticRun) -> None:
    run.train(0, last=1)


def without_evaluations(run: SyntheticRun) -> None:
    run.train(0, evaluate_every=None)


def nothing_but_nan(run: SyntheticRun) -> None:
    run.train(0, nan_at=range(1, 31), evaluate_every=None)


def some_nan(run: SyntheticRun) -> None:
    run.train(0, nan_at=[7, 8])


def restarted(run: SyntheticRun) -> None:
    run.train(0, last=10)
    run.wait(3600)
    run.event("resumed")
    run.train(0, first=11, attempt=2)


def phases_without_their_ends(run: SyntheticRun) -> None:
    run.train(0)
    run.event("started", phase="consolidate", stage=0, attempt=1)
    run.event("started", phase="grow", stage=1, attempt=1)
    run.train(1)


def metrics_without_a_journal(run: SyntheticRun) -> None:
    run.train(0)
    (run.path / "journal.jsonl").unlink()


def torn_at_its_end(run: SyntheticRun) -> None:
    run.train(0, last=20)
    for name in ("journal.jsonl", "0-L3/metrics.jsonl"):
        with open(run.path / name, "a") as file:
            file.write('{"kind": "tr')


@pytest.mark.parametrize(
    "history",
    [
        only_created,
        in_its_first_update,
        one_record,
        without_evaluations,
        nothing_but_nan,
        some_nan,
        restarted,
        phases_without_their_ends,
        metrics_without_a_journal,
        torn_at_its_end,
    ],
)
def test_any_history_gives_a_complete_page(run: SyntheticRun, history: Callable[[SyntheticRun], None]) -> None:
    history(run)
    page = page_of(run)
    for name in ("0-L3", "1-L6", "2-L12"):
        assert name in page.text


def test_the_page_is_self_contained(run: SyntheticRun) -> None:
    page = page_of(run.whole())
    assert all(reference.startswith("#") for reference in page.references)
    text = (run.path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\((?!['\"]?#)|@import|<script|<link", text)


def test_chart_element_ids_are_unique(run: SyntheticRun) -> None:
    page_of(run.whole())
    text = (run.path / "report.html").read_text(encoding="utf-8")
    charts = re.findall(r"<svg .*?</svg>", text, flags=re.DOTALL)
    used = [set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", chart)) for chart in charts]
    made = [set(re.findall(r'id="([^"]+)"', chart)) for chart in charts]
    assert len(charts) == 2
    assert used[0] <= made[0] and used[1] <= made[1]
    assert not used[0] & made[1] and not used[1] & made[0]


def test_omissions_and_problems_are_mentioned(run: SyntheticRun) -> None:
    restarted(run)
    run.train(1, nan_at=[3])
    text = " ".join(page_of(run).text.split())
    assert "these gaps, 1 h in all, are left out" in text
    assert "The loss is not a number in 1 of the records, first at update 33." in text
    assert "Restarts and failures None." not in text


def test_text_from_the_run_is_escaped(run: SyntheticRun) -> None:
    run.train(0, last=10)
    run.event("failed", phase="train", stage=0, attempt=1, message="<script>alert(1)</script>")
    assert "<script>alert(1)</script>" in page_of(run).text


def test_a_report_replaces_the_previous_one(run: SyntheticRun) -> None:
    run.train(0, last=10)
    assert "10 of 90 updates so far" in page_of(run).text
    run.train(0, first=11, attempt=2)
    assert "30 of 90 updates so far" in page_of(run).text


def test_a_model_of_one_depth_has_a_page_too(tmp_path: Path) -> None:
    page = page_of(SyntheticRun(tmp_path, layers=(12,), steps=(30,)).whole())
    assert "12 layers, 30 updates" in page.text


def test_what_is_not_a_run_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        write_report(tmp_path)
