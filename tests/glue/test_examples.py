"""Official TSV files are read whatever their quirks; a file that is not one is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.errors import UserError
from stacking.glue.source import hidden_sets, open_source
from stacking.glue.tasks import TASKS, GlueTask, chosen
from stacking.glue.tsv import read_tsv
from tests.glue.small_glue import label_of, sentence, write_diagnostic, write_glue, write_task

EVERY_TASK = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
COLA, MRPC, STSB, MNLI, QQP = (TASKS[name] for name in ("CoLA", "MRPC", "STS-B", "MNLI", "QQP"))


@EVERY_TASK
def test_every_task_is_read_from_its_official_files(task: GlueTask, tmp_path: Path) -> None:
    source = open_source(str(write_glue(tmp_path, task.name)))
    train = source.train(task)
    assert len(train) == 24 and train.labels is not None and train.left_out == 0
    kinds = [label_of(task, number)[0] for number in range(24)]
    assert train.first == [sentence(number, kind) for number, kind in enumerate(kinds)]
    assert bool(train.second) == task.is_pair
    if task.is_regression:
        assert train.labels.tolist() == [(5.0, 0.0, 2.5)[kind] for kind in kinds]
    else:
        assert train.labels.tolist() == kinds
    for held in task.held:
        test = source.test(task, held)
        assert len(source.dev(task, held)) == 12
        assert test is not None and test.labels is None and test.ids == ["100", "101", "102", "103", "104"]


@EVERY_TASK
@pytest.mark.parametrize("layout", ["save_to_disk", "parquet"])
def test_datasets_folders_give_the_same_examples(task: GlueTask, layout: str, tmp_path: Path) -> None:
    import datasets

    files = open_source(str(write_glue(tmp_path / "tsv", task.name)))
    train, devs = files.train(task), [files.dev(task, held) for held in task.held]
    splits = {"train": train, **{held.dev_split: dev for held, dev in zip(task.held, devs, strict=True)}}
    of_datasets = datasets.DatasetDict()
    for name, examples in splits.items():
        assert examples.labels is not None
        texts = dict(zip(task.fields, (examples.first, examples.second), strict=False))
        labels = examples.labels if task.is_regression else examples.labels.astype(int)
        of_datasets[name] = datasets.Dataset.from_dict({**texts, "label": labels.tolist()})
    place = tmp_path / "saved" / task.subset
    if layout == "save_to_disk":
        of_datasets.save_to_disk(str(place))
    else:
        place.mkdir(parents=True)
        for name, rows in of_datasets.items():
            rows.to_parquet(str(place / f"{name}-00000-of-00001.parquet"))
    saved = open_source(str(place.parent))
    assert saved.train(task).digest() == train.digest()
    assert [saved.dev(task, held).digest() for held in task.held] == [dev.digest() for dev in devs]
    assert saved.test(task, task.held[0]) is None


@pytest.mark.parametrize("name", ["AX/AX.tsv", "AX.tsv", "diagnostic/diagnostic.tsv"])
def test_the_diagnostic_set_is_a_test_set_of_mnli(name: str, tmp_path: Path) -> None:
    source = open_source(str(write_glue(tmp_path, "MNLI", "RTE")))
    assert list(hidden_sets(source, MNLI)) == ["MNLI-m", "MNLI-mm"]
    write_diagnostic(tmp_path / name)
    found = hidden_sets(source, MNLI)
    assert list(found) == ["MNLI-m", "MNLI-mm", "AX"] and "AX" not in hidden_sets(source, TASKS["RTE"])
    assert (found["AX"].ids, found["AX"].labels) == (["0", "1", "2", "3"], None)
    assert found["AX"].second == [sentence(number, 1) for number in range(4)]


def test_the_diagnostic_set_is_read_from_datasets_too(tmp_path: Path) -> None:
    import datasets

    write_task(tmp_path / "tsv", MNLI)
    files = hidden_sets(open_source(str(write_diagnostic(tmp_path / "tsv" / "AX.tsv").parent)), MNLI)
    rows = {"premise": files["AX"].first, "hypothesis": files["AX"].second, "label": [-1] * 4, "idx": list(range(4))}
    place = tmp_path / "saved" / "ax"
    datasets.DatasetDict({"test": datasets.Dataset.from_dict(rows)}).save_to_disk(str(place))
    assert open_source(str(place.parent)).diagnostic() == files["AX"]
    place.rename(place.with_name("mrpc"))
    assert open_source(str(place.parent)).diagnostic() is None


TEXT = st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]), min_size=1)


@given(rows=st.lists(st.tuples(TEXT, TEXT, st.sampled_from("01")), min_size=1, max_size=20))
def test_any_text_without_tabs_round_trips(
    rows: list[tuple[str, str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("tsv") / "train.tsv"
    lines = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", *(f"{label}\t1\t2\t{a}\t{b}" for a, b, label in rows)]
    path.write_bytes("\n".join(lines).encode("utf-8-sig"))
    examples = read_tsv(path, MRPC, labelled=True)
    assert list(zip(examples.first, examples.second, strict=True)) == [(a, b) for a, b, _ in rows]
    assert examples.labels is not None and examples.labels.tolist() == [float(label) for *_, label in rows]


def test_windows_line_endings_and_a_header_in_cola_are_tolerated(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_bytes(b"sentence\tlabel\r\nHe \xe2\x80\xa8 left.\t1\r\n")
    examples = read_tsv(path, COLA, labelled=True)
    assert (examples.first, examples.labels.tolist()) == (["He \u2028 left."], [1.0])  # type: ignore[union-attr]


def test_a_few_lines_without_columns_or_label_are_counted(tmp_path: Path) -> None:
    path = write_task(tmp_path, MNLI, dev=400) / "dev_matched.tsv"
    undecided = path.read_text().splitlines()[1].rsplit("\t", 1)[0] + "\t-\n"
    path.write_text(path.read_text() + undecided + "broken\tline\n")
    examples = read_tsv(path, MNLI, labelled=True)
    assert (len(examples), examples.left_out) == (400, 2)
    path.write_text(path.read_text() + undecided * 20)
    with pytest.raises(UserError, match=r"dev_matched.tsv: has 22 of 422 lines without all columns"):
        read_tsv(path, MNLI, labelled=True)


def test_a_test_set_keeps_all_of_its_lines(tmp_path: Path) -> None:
    path = write_task(tmp_path, QQP) / "test.tsv"
    path.write_text(path.read_text() + "105\tno second question\n")
    with pytest.raises(UserError, match=r"test.tsv: line 7: has 2 columns; give all 3"):
        read_tsv(path, QQP, labelled=False)


@pytest.mark.parametrize(
    ("task", "content", "expected"),
    [
        ("SST-2", "sentence\tlabl\nx\t1\n", "has no column 'label'"),
        ("SST-2", "sentence\tlabel\nx\tyes\n", 'line 2: has the label "yes"; labels are 0 or 1'),
        ("SST-2", "", "is empty; restore SST-2"),
        ("SST-2", "sentence\tlabel\n", "has no examples; restore SST-2"),
        ("STS-B", "sentence1\tsentence2\tscore\na\tb\t5.2\n", 'line 2: has the score "5.2"; scores are numbers from 0'),
        ("STS-B", "sentence1\tsentence2\tscore\na\tb\tnan\n", 'line 2: has the score "nan"'),
        ("RTE", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tneutral\n", "labels are entailment or not_entailment"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(task: str, content: str, expected: str, tmp_path: Path) -> None:
    place = write_task(tmp_path, TASKS[task])
    (place / "dev.tsv").write_text(content)
    with pytest.raises(UserError) as caught:
        open_source(str(tmp_path)).dev(TASKS[task], TASKS[task].held[0])
    assert str(caught.value).startswith(str(place / "dev.tsv")) and expected in str(caught.value)


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    path = write_task(tmp_path, TASKS["SST-2"]) / "train.tsv"
    path.write_bytes(b"sentence\tlabel\ncaf\xe9\t1\n")
    with pytest.raises(UserError, match=r"train.tsv: is not UTF-8"):
        open_source(str(tmp_path)).train(TASKS["SST-2"])


def test_a_missing_task_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/RTE: does not exist; add the task's files, or leave it out with --tasks"):
        open_source(str(tmp_path)).train(TASKS["RTE"])
    with pytest.raises(UserError, match=r"--data .*nowhere: does not exist; give a folder"):
        open_source(str(tmp_path / "nowhere"))


def test_folders_may_be_spelled_as_on_the_hub(tmp_path: Path) -> None:
    write_task(tmp_path, STSB).rename(tmp_path / "sts_b")
    assert len(open_source(str(tmp_path)).train(STSB)) == 24


def test_a_misspelt_task_is_refused() -> None:
    assert [task.name for task in chosen(["rte", "CoLA"])] == ["CoLA", "RTE"]
    with pytest.raises(UserError, match=r"--tasks: has 'MRCP', which is not a task of GLUE; did you mean 'MRPC'\?"):
        chosen(["MRCP"])


def test_a_digest_depends_on_texts_and_labels(tmp_path: Path) -> None:
    examples = open_source(str(write_glue(tmp_path, "RTE"))).train(TASKS["RTE"])
    assert examples.labels is not None
    others = [
        replace(examples, first=["x", *examples.first[1:]]),
        replace(examples, labels=1 - examples.labels),
        replace(examples, second=examples.first, first=examples.second),
    ]
    assert len({one.digest() for one in [examples, *others]}) == 4
    assert replace(examples, labels=np.copy(examples.labels)).digest() == examples.digest()
