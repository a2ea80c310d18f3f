"""The report shows the existing measurements of attention, and names the missing ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacking.config.recipe import AttentionSnapshots
from stacking.planning.plan import write_plan
from stacking.report.attention import attention_section
from stacking.report.comparison import charged_seconds
from stacking.report.html import write_report
from stacking.report.run import Run, read_run
from stacking.report.tables import account_table
from stacking.report.timeline import account
from stacking.storage.files import new_folder
from tests.attention.test_page import measured
from tests.report.synthetic import SyntheticRun
from tests.report.test_html import Page


class MeasuredRun(SyntheticRun):
    """A run of 3 → 6 layers whose recipe asks for measurements."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, layers=(3, 6), steps=(30, 30))
        self.plan = self.plan.model_copy(update={"attention": AttentionSnapshots(samples=8)})
        write_plan(path / "plan.json", self.plan)

    def measure(self, stage: int, moment: str, seconds: float = 7.0) -> Path:
        self.phase(f"attention-{moment}", stage, seconds)
        folder = self.path / self.plan.stages[stage].name / f"attention-{moment}"
        with new_folder(folder) as partial:
            measured(self.plan.stages[stage].layers).write(partial)
        return folder

    def whole(self) -> MeasuredRun:
        self.train(0)
        self.phase("consolidate", 0, 3.0)
        self.measure(0, "trained")
        self.phase("grow", 1, 1.5)
        self.measure(1, "grown")
        self.train(1)
        self.phase("consolidate", 1, 3.0)
        self.measure(1, "trained")
        return self


@pytest.fixture
def run(tmp_path: Path) -> MeasuredRun:
    return MeasuredRun(tmp_path / "run")


def read(run: SyntheticRun) -> Run:
    return read_run(run.path)


def test_every_moment_has_a_row_and_a_picture(run: MeasuredRun) -> None:
    section = attention_section(read(run.whole()))
    assert section is not None and section.problems == ()
    labels = ["3 layers, at the end", "6 layers, after growing", "6 layers, at the end"]
    assert [row[0] for row in section.table.rows] == labels
    assert section.chart is not None and all(label in section.chart for label in labels)
    odd, even = section.table.rows[:2]
    alike = measured(6).similarity
    assert odd[4] == "–" or not odd[4][0].isdigit()
    assert even[4:] == (f"{alike.halves_cosine:.3f}", f"{alike.others_cosine:.3f}")


def test_the_page_shows_it_and_is_self_contained(run: MeasuredRun) -> None:
    page = Page(write_report(run.whole().path).read_text(encoding="utf-8"))
    assert page.open == [] and "6 layers, after growing" in page.text
    assert all(reference.startswith(("#", "data:")) for reference in page.references)


def test_before_the_first_measurement_the_section_is_empty(run: MeasuredRun) -> None:
    section = attention_section(read(run))
    assert section is not None and section.chart is None and section.problems == ()
    assert "Nothing has been measured yet." in Page(write_report(run.path).read_text(encoding="utf-8")).text


def test_without_the_key_there_is_no_section(tmp_path: Path) -> None:
    plain = SyntheticRun(tmp_path / "run").whole()
    assert attention_section(read(plain)) is None
    assert "half the depth apart" not in write_report(plain.path).read_text(encoding="utf-8")


def test_a_measurement_that_was_left_out_is_named(run: MeasuredRun) -> None:
    run.train(0)
    run.event("skipped", phase="attention-trained", stage=0, message="left out: exit code 1")
    section = attention_section(read(run))
    assert section is not None and section.problems == ("3 layers, at the end: left out: exit code 1",)


def test_a_damaged_measurement_is_named_and_does_not_hide_the_others(run: MeasuredRun) -> None:
    run.whole()
    file = run.path / "1-L6" / "attention-grown" / "attention.json"
    file.write_text(file.read_text().replace("0.", "1.", 1))
    section = attention_section(read(run))
    assert section is not None and len(section.table.rows) == 2
    assert section.problems[0].startswith("6 layers, after growing: ") and "attention.json" in section.problems[0]
    write_report(run.path)


def test_measuring_is_accounted_for_but_not_charged_to_a_run(run: MeasuredRun, tmp_path: Path) -> None:
    plain = SyntheticRun(tmp_path / "plain", layers=(3, 6), steps=(30, 30)).whole()
    run.whole()
    assert charged_seconds(read(run)) == pytest.approx(charged_seconds(read(plain)))
    spent = account(read(run))
    assert spent.attention == pytest.approx(21)
    assert ("attention", "21 s") in [row[:2] for row in account_table(read(run)).rows]
    assert "attention" not in [row[0] for row in account_table(read(plain)).rows]
