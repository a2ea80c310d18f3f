"""Given tokenizers: transformers' ids in the shards and in the tokenizer next to them, or a line that says why not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from stacking.data import vocabulary
from stacking.data.encode import Encoder
from stacking.data.given import load
from stacking.data.sentences import split_sentences
from stacking.errors import UserError
from tests.data.conftest import WORDS, prose

transformers = pytest.importorskip("transformers")

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEüéßçñ0123456789.,!#[]<>_-"
ENTRIES = [
    *SPECIALS,
    *LETTERS,
    *(f"##{letter}" for letter in LETTERS),
    "müde",
    "mude",
    "schön",
    "中",
    "文",
    "##文",
    "time",
]
BERT = {"tokenizer_class": "BertTokenizer"}
FAST = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "pad_token": "[PAD]"} | {
    f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "mask")
}
ODD = (
    "aZ9 éÉßİσΣ中文字\u0301\u0327\ufb01\u2028\x1c\x85\x00\x07\ufffd\u200b\u200d\u00ad#'\"-_.…\U0001f468\u200d\U0001f469"
)


def write(folder: Path, **files: Any) -> Path:
    """A folder of files; ``__`` in the arguments stands for the dot in their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def lines(*entries: str) -> str:
    return "".join(f"{entry}\n" for entry in entries)


def word_piece(longest: int = 100, unknown: str = "[UNK]") -> Tokenizer:
    entries = {entry: number for number, entry in enumerate(ENTRIES)}
    made = Tokenizer(models.WordPiece(entries, unk_token=unknown, max_input_chars_per_word=longest))
    made.add_special_tokens(SPECIALS)
    return made


def molecules() -> dict[str, Any]:
    made = word_piece(longest=30)
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return json.loads(made.to_str())


def lower_alone() -> dict[str, Any]:
    made = word_piece()
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["[DRUG]"])
    made.add_tokens([AddedToken("time flies", normalized=False), AddedToken("Zeit", single_word=True)])
    return json.loads(made.to_str())


FOLDERS: dict[str, dict[str, Any]] = {
    "bert": {"vocab__txt": lines(*ENTRIES), "tokenizer_config__json": BERT},
    "cased": {"vocab__txt": lines(*ENTRIES), "tokenizer_config__json": {**BERT, "do_lower_case": False}},
    "accents": {"vocab__txt": lines(*ENTRIES), "tokenizer_config__json": {**BERT, "strip_accents": False}},
    "strip only": {
        "vocab__txt": lines(*ENTRIES),
        "tokenizer_config__json": {**BERT, "do_lower_case": False, "strip_accents": True},
    },
    "joined": {"vocab__txt": lines(*ENTRIES), "tokenizer_config__json": {**BERT, "tokenize_chinese_chars": False}},
    "model type": {"vocab__txt": lines(*ENTRIES), "config__json": {"model_type": "bert"}},
    "added": {
        "vocab__txt": lines(*ENTRIES),
        "tokenizer_config__json": BERT,
        "added_tokens__json": {"<url>": len(ENTRIES), "Zeit": len(ENTRIES) + 1},
        "special_tokens_map__json": {"additional_special_tokens": ["<url>", "[DRUG]"], "mask_token": "[MASK]"},
    },
    "own names": {
        "vocab__txt": lines("<pad>", "<unk>", "<s>", "</s>", "<mask>", *ENTRIES[5:]),
        "tokenizer_config__json": {**BERT, "pad_token": "<pad>", "unk_token": "<unk>"}
        | {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"},
    },
    "pad is last": {"vocab__txt": lines(*ENTRIES[1:], "[PAD]"), "tokenizer_config__json": BERT},
    "molecules": {"tokenizer__json": molecules(), "tokenizer_config__json": FAST},
    "no settings": {"tokenizer__json": molecules()},
    "no class": {"vocab__txt": lines(*ENTRIES), "tokenizer_config__json": {"do_lower_case": False}},
    "lower alone": {"tokenizer__json": lower_alone(), "tokenizer_config__json": FAST},
}


@pytest.fixture(scope="module", params=FOLDERS)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, Any, Encoder]]:
    """What transformers loads from a folder, what it loads from the folder that we write, and our encoder."""
    folder = write(tmp_path_factory.mktemp("given") / "tokenizer", **FOLDERS[request.param])
    # AutoTokenizer refuses a vocabulary without a class name, which is BERT's here.
    kind = transformers.BertTokenizerFast if request.param == "no class" else transformers.AutoTokenizer
    theirs = kind.from_pretrained(str(folder))
    found = load(folder)
    out = folder.with_name("written")
    vocabulary.save(found.tokenizer, out, found.special)
    written = transformers.AutoTokenizer.from_pretrained(str(out))
    yield theirs, written, Encoder(Tokenizer.from_file(str(out / "tokenizer.json")))


pieces = st.sampled_from(
    [*WORDS[:8], *ODD, "[SEP]", "[MASK]", "a[MASK]b", "[DRUG]", "<url>", "time flies", "Zeit", "zeit", "<mask>", "müde"]
)
texts = st.lists(pieces | st.characters(exclude_categories=["Cs"]), max_size=20).map(" ".join) | st.lists(
    pieces, max_size=20
).map("".join)


@given(text=texts)
@example(text="Müde Flüsse [MASK] [DRUG]s <url>. " + "x" * 101 + " CC(=O)Oc1ccccc1C(=O)O time flies")
@settings(max_examples=100, deadline=None)
def test_the_shards_and_the_written_tokenizer_have_transformers_ids(both: tuple[Any, Any, Encoder], text: str) -> None:
    theirs, written, encoder = both
    sentences = list(split_sentences(text))
    ids, lengths = encoder.encode(sentences)
    ends = np.cumsum(lengths)
    for sentence, start, end in zip(sentences, ends - lengths, ends, strict=True):
        expected = theirs(sentence, add_special_tokens=False)["input_ids"]
        assert ids[start:end].tolist() == expected
        assert written(sentence, add_special_tokens=False)["input_ids"] == expected
    assert written(text)["input_ids"] == theirs(text)["input_ids"]


def test_special_tokens_keep_their_roles(both: tuple[Any, Any, Encoder]) -> None:
    theirs, written, _ = both
    for name in vocabulary.SPECIAL_TOKENS:
        if getattr(theirs, f"{name}_token") is None:
            assert getattr(written, f"{name}_token") == vocabulary.SPECIAL_TOKENS[name]
            continue
        assert getattr(written, f"{name}_token_id") == getattr(theirs, f"{name}_token_id")


def test_a_tokenizer_may_be_a_folder_or_either_of_its_files(tmp_path: Path) -> None:
    tokenizer = vocabulary.train([prose(1, 100)], 300, lowercase=True)
    vocabulary.save(tokenizer, tmp_path)
    sentence = "Hello, world! Naïve café 中文 it's 3.50 [MASK]"
    for path in (tmp_path, tmp_path / "tokenizer.json", tmp_path / "vocab.txt"):
        loaded, special = load(path)
        assert loaded.encode(sentence).ids == tokenizer.encode(sentence).ids
        assert vocabulary.special_ids(loaded, special) == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def test_an_existing_vocabulary_keeps_its_special_ids(tmp_path: Path) -> None:
    write(tmp_path, vocab__txt="a\n##b\n[MASK]\n[SEP]\n[UNK]\n[CLS]\n[PAD]\n")
    loaded, special = load(tmp_path / "vocab.txt")
    assert vocabulary.special_ids(loaded, special) == {"mask": 2, "sep": 3, "unk": 4, "cls": 5, "pad": 6}
    assert loaded.encode("ab").ids == [5, 0, 1, 3]


@pytest.mark.parametrize("cased", [True, False])
@pytest.mark.parametrize("name", ["vocab.txt", ""])
def test_the_cased_option_decides_for_a_bare_vocabulary(tmp_path: Path, cased: bool, name: str) -> None:
    write(tmp_path, vocab__txt=lines(*ENTRIES))
    found = load(tmp_path / name, cased=cased).tokenizer.encode("Aé", add_special_tokens=False).tokens
    assert found == (["A", "##é"] if cased else ["a", "##e"])


def test_the_cased_option_decides_where_the_settings_are_silent(tmp_path: Path) -> None:
    write(tmp_path, vocab__txt=lines(*ENTRIES), tokenizer_config__json=BERT)
    assert load(tmp_path, cased=True).tokenizer.encode("A", add_special_tokens=False).tokens == ["A"]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"vocab__txt": lines(*ENTRIES), "tokenizer_config__json": {**BERT, "do_lower_case": True}}, "do_lower_case"),
        ({"tokenizer__json": molecules(), "tokenizer_config__json": FAST}, "tokenizer.json"),
    ],
)
def test_the_cased_option_is_refused_where_it_would_be_ignored(
    tmp_path: Path, files: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=f"--cased: has no effect: .*{says} already sets whether to lower-case"):
        load(write(tmp_path, **files), cased=True)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 231508\n"
LOWER = json.loads(
    vocabulary.with_specials(vocabulary.bert(word_piece().model, True), vocabulary.SPECIAL_TOKENS).to_str()
)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no mask": ({"vocab__txt": lines(*ENTRIES[:4], *ENTRIES[5:])}, r"vocab.txt: has no \[MASK\]"),
    "no mask, with settings": (
        {"vocab__txt": lines(*ENTRIES[:4], *ENTRIES[5:]), "tokenizer_config__json": BERT},
        r"vocab.txt: has no \[MASK\]",
    ),
    "pointer": ({"vocab__txt": LFS}, "vocab.txt: is a Git LFS pointer"),
    "pointer as settings": (
        {"vocab__txt": lines(*ENTRIES), "tokenizer_config__json": LFS},
        "config.json: is a Git LFS",
    ),
    "pointer as config": ({"vocab__txt": lines(*ENTRIES), "config__json": LFS}, "config.json: is a Git LFS"),
    "pointer as json": ({"tokenizer__json": LFS}, "tokenizer.json: is a Git LFS pointer"),
    "web page": ({"vocab__txt": "<!DOCTYPE html><html>"}, "vocab.txt: is a web page"),
    "columns": (
        {"vocab__txt": "".join(f"{e}\t{n}\n" for n, e in enumerate(ENTRIES))},
        r"line 1: has columns \('\[PAD\]",
    ),
    "byte order mark": ({"vocab__txt": "\ufeff" + lines(*ENTRIES)}, "begins with a byte order mark"),
    "empty": ({"vocab__txt": "\n"}, "vocab.txt: is empty"),
    "list": ({"vocab__txt": lines(*ENTRIES), "tokenizer_config__json": [1]}, "tokenizer_config.json: holds a list"),
    "not JSON": ({"tokenizer__json": "{"}, "tokenizer.json: is not JSON"),
    "null": (
        {"vocab__txt": lines(*ENTRIES), "tokenizer_config__json": {**BERT, "do_lower_case": None}},
        "tokenizer_config.json: do_lower_case: is null; write true or false",
    ),
    "text": (
        {"vocab__txt": lines(*ENTRIES), "tokenizer_config__json": {**BERT, "do_lower_case": "False"}},
        'do_lower_case: is "False"; write true or false',
    ),
    "Japanese": (
        {
            "vocab__txt": lines(*ENTRIES),
            "tokenizer_config__json": {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"},
        },
        "is BertJapaneseTokenizer, which splits words with mecab",
    ),
    "Japanese, in the model's config": (
        {
            "vocab__txt": lines(*ENTRIES),
            "config__json": {"model_type": "bert", "tokenizer_class": "BertJapaneseTokenizer"},
            "tokenizer_config__json": {"do_lower_case": False},
        },
        "is BertJapaneseTokenizer",
    ),
    "code": (
        {"vocab__txt": lines(*ENTRIES), "tokenizer_config__json": {"auto_map": {"AutoTokenizer": ["a.B", None]}}},
        "auto_map: refers to code",
    ),
    "replaced front end": (
        {"tokenizer__json": molecules(), "tokenizer_config__json": BERT},
        "tokenizer.json: normalizer: says null, but BertTokenizer of tokenizer_config.json makes that",
    ),
    "contradicting case": (
        {"tokenizer__json": LOWER, "tokenizer_config__json": {**BERT, "do_lower_case": False}},
        "tokenizer.json: normalizer: says",
    ),
    "contradicting ids": (
        {"tokenizer__json": LOWER, "vocab__txt": lines(*ENTRIES[1:], "[PAD]"), "tokenizer_config__json": BERT},
        "vocab.txt: gives '.*' the id .*, but tokenizer.json the id",
    ),
    "BPE": ({"tokenizer__json": json.loads(Tokenizer(models.BPE()).to_str())}, "is a BPE tokenizer"),
    "Unigram": ({"tokenizer__json": json.loads(Tokenizer(models.Unigram()).to_str())}, "is a Unigram tokenizer"),
    "another program's": (
        {"tokenizer__json": {"class_name": "Tokenizer", "config": {}}},
        "its keys: class_name, config",
    ),
    "SentencePiece": ({"spiece__model": "x"}, "spiece.model: is a SentencePiece model"),
    "nothing": ({}, "has no tokenizer in it"),
    "other unknown": (
        {"tokenizer__json": json.loads(word_piece(unknown="<unk>").to_str()), "tokenizer_config__json": FAST},
        "writes '<unk>' for unknown words",
    ),
    "far id": (
        {
            "tokenizer__json": {
                **LOWER,
                "model": LOWER["model"] | {"vocab": LOWER["model"]["vocab"] | {"far": 4_000_000_000}},
            }
        },
        "has ids up to 4,000,000,000",
    ),
    "shared": (
        {"vocab__txt": lines(*ENTRIES), "tokenizer_config__json": {**BERT, "pad_token": "[UNK]"}},
        "uses one token for several of pad, unk",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_cannot_be_followed_are_named(tmp_path: Path, name: str) -> None:
    files, problem = REFUSED[name]
    with pytest.raises(UserError, match=problem) as caught:
        load(write(tmp_path / "tokenizer", **files))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "shift_jis"])
def test_unsupported_encodings_are_named(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "vocab.txt").write_bytes(lines(*SPECIALS, "時間", "人間").encode(encoding))
    with pytest.raises(UserError, match=r"vocab.txt: line \d+: is not UTF-8, it reads as (utf-16|gb18030)"):
        load(tmp_path / "vocab.txt")


def test_a_path_that_is_not_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none: does not exist"):
        load(tmp_path / "none")
