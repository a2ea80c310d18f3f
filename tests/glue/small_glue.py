"""A small GLUE in the official layout, in which one word gives the label away, and a small BERT to train on it."""

from __future__ import annotations

from pathlib import Path

import transformers

from stacking.data.vocabulary import save, train
from stacking.glue.tasks import TASKS, GlueTask

WORDS = ["good", "bad", "fair", "film", "plot", 'a "quoted', "scene", "ending", "actor", "line"]
_EXTRA = {
    "MRPC": ["#1 ID", "#2 ID"],
    "STS-B": ["index", "genre", "filename", "year"],
    "QQP": ["id", "qid1", "qid2"],
    "MNLI": ["index", "promptID", "pairID", "sentence1_parse", "label1"],
    "QNLI": ["index"],
    "RTE": ["index"],
    "WNLI": ["index"],
}


def sentence(number: int, label: int) -> str:
    """The word of the label, and others that carry no information."""
    others = [WORDS[3 + (number * step) % 7] for step in range(1, 2 + number % 5)]
    return " ".join([WORDS[label], *others])


def label_of(task: GlueTask, number: int) -> tuple[int, str]:
    """Which word an example has, and its label in the file."""
    if task.is_regression:
        return number % 3, f"{(5.0, 0.0, 2.5)[number % 3]:.3f}"
    kind = number % len(task.labels)
    return kind, task.labels[kind]


def write_task(folder: Path, task: GlueTask, train: int = 24, dev: int = 12) -> Path:
    """The files of one task; MRPC starts with a byte-order mark and CoLA has no header, like the official ones."""
    place = folder / task.name
    place.mkdir(parents=True, exist_ok=True)
    files = [("train", train), *((held.dev, dev) for held in task.held)]
    for name, count in files:
        (place / f"{name}.tsv").write_text(_labelled(task, count), encoding="utf-8")
    for held in task.held:
        (place / f"{held.test}.tsv").write_text(_hidden(task, 5), encoding="utf-8")
    return place


def _labelled(task: GlueTask, count: int) -> str:
    columns = [*_EXTRA.get(task.name, []), *task.text, task.label]
    lines = []
    for number in range(count):
        kind, label = label_of(task, number)
        texts = [sentence(number, kind), sentence(number + 1, kind)][: len(task.text)]
        lines.append([str(number)] * len(_EXTRA.get(task.name, [])) + [*texts, label])
    if task.without_header:
        return "".join(f"gj04\t{line[-1]}\t*\t{line[0]}\n" for line in lines)
    mark = "\ufeff" if task.name == "MRPC" else ""
    return mark + "".join("\t".join(line) + "\n" for line in [columns, *lines])


def _hidden(task: GlueTask, count: int) -> str:
    columns = ["id" if task.name == "QQP" else "index", *task.text]
    lines = [[str(100 + number), *([sentence(number, number % 2)] * len(task.text))] for number in range(count)]
    return "".join("\t".join(line) + "\n" for line in [columns, *lines])


def write_glue(folder: Path, *names: str) -> Path:
    """Some tasks; all of them if no names are given."""
    for task in TASKS.values():
        if not names or task.name in names:
            write_task(folder, task)
    return folder


def write_diagnostic(path: Path, count: int = 4) -> Path:
    """The diagnostic set AX, as TSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [f"{number}\t{sentence(number, 0)}\t{sentence(number, 1)}\n" for number in range(count)]
    path.write_text("index\tsentence1\tsentence2\n" + "".join(texts), encoding="utf-8")
    return path


def write_tokenizer(folder: Path) -> int:
    """A WordPiece tokenizer for `WORDS`; returns the size of its vocabulary."""
    tokenizer = train([" ".join(WORDS)] * 4, 200, lowercase=True)
    save(tokenizer, folder)
    return tokenizer.get_vocab_size()


def write_bert(folder: Path, **config: object) -> Path:
    """A Hugging Face BERT with random weights, and its tokenizer."""
    vocabulary = write_tokenizer(folder)
    transformers.set_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    defaults = {"max_position_embeddings": 32, "initializer_range": 0.2, **shape}
    settings = transformers.BertConfig(vocab_size=vocabulary, **{**defaults, **config})  # type: ignore[arg-type]
    transformers.BertModel(settings).save_pretrained(folder)
    return folder
