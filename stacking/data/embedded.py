"""Reads the embedded corpus: real English prose that is available wherever this program runs.

It is the documentation that ships with Python and the installed packages: the topics of ``help()`` and the docstrings,
read from source files without importing them. Doctests, code, tables, signatures and markup are dropped; whole
paragraphs of prose are kept, without duplicates. The result depends only on the installed versions.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

import xxhash

LIMIT = 6_000_000
"""Number of characters after which no further module is read."""

PACKAGES = (
    *("numpy", "networkx", "sympy", "matplotlib", "pandas", "torch", "transformers", "deepspeed", "datasets"),
    *("huggingface_hub", "tokenizers", "pydantic", "rich", "click", "jinja2", "setuptools", "pip"),
)
"""Installed packages to read after the standard library, in this order; missing ones are skipped."""

_SKIPPED = {
    "test",
    "tests",
    "testing",
    "idlelib",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "_vendor",
}
_FILES_AT_ONCE = 512
_SHORTEST_DOCUMENT = 200
_FEWEST_WORDS = 8
_PROSE_SHARE = 0.94

_ROLE = re.compile(r":[\w:.+-]+:`!?(?:~[\w.]*\.)?([^`<>]+?)(?:\s*<[^`]*>)?`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]+>`_{0,2}|\[([^\]]+)\]\([^)]+\)")
_QUOTED = re.compile(r"(?<!\w)(`{1,2}|\*{1,2})(?=\S)([^`*]+?)\1(?!\w)|`([^`]+)`_?")
_FOOTNOTE = re.compile(r"\s*\[[\w#]+\]_|\|[\w-]+\|")
_BULLET = re.compile(r"^(?:[-*+•]|\(?\d{1,2}[.)]|\.\. \w+::)\s+")
_CODE = re.compile(r"[=<>{}|\\@#~^$]|::|\w\(\w*\)\.|__|https?:|^\w+:\s|^\W*(?:def|class|import|from|return)\s+\w+")
_LETTERS = re.compile(r"[A-Za-z ,.;'-]")


def embedded_sources() -> list[Path]:
    """Returns the Python files of the corpus, in order."""
    library = Path(sysconfig.get_path("stdlib"))
    roots = [library, *(root for root in map(_package, PACKAGES) if root)]
    files = [file for root in roots for file in sorted(root.rglob("*.py")) if _is_wanted(file.relative_to(root))]
    topics = library / "pydoc_data" / "topics.py"
    return [topics, *(file for file in files if file != topics)] if topics.is_file() else files


def _is_wanted(file: Path) -> bool:
    return not _SKIPPED & set(file.parts)


def fingerprint(sources: list[Path]) -> str:
    """Digests the names and sizes of ``sources``; it stays the same as long as the installed versions do."""
    names = "\n".join(f"{file}:{file.stat().st_size}" for file in sources)
    return xxhash.xxh3_64_hexdigest(names.encode("utf-8", "surrogatepass"))


def embedded_documents(sources: list[Path], executor: Executor | None = None) -> Iterator[str]:
    """Yields the corpus, one document per help topic and per module with enough prose, up to ``LIMIT`` characters.

    The order is that of ``sources``, with or without an ``executor`` to read them in parallel.
    """
    seen: set[int] = set()
    total = 0
    for start in range(0, len(sources), _FILES_AT_ONCE):
        files = sources[start : start + _FILES_AT_ONCE]
        mapped = map(_prose_of_file, files) if executor is None else executor.map(_prose_of_file, files, chunksize=16)
        for document in (document for documents in mapped for document in documents):
            text = "\n\n".join(_fresh(document, seen))
            if len(text) < _SHORTEST_DOCUMENT:
                continue
            yield text
            total += len(text)
            if total >= LIMIT:
                return


def _fresh(paragraphs: list[str], seen: set[int]) -> Iterator[str]:
    """Returns those ``paragraphs`` that were not ``seen`` before."""
    for paragraph in paragraphs:
        digest = xxhash.xxh3_64_intdigest(paragraph.lower().encode("utf-8", "surrogatepass"))
        if digest not in seen:
            seen.add(digest)
            yield paragraph


def _package(name: str) -> Path | None:
    found = importlib.util.find_spec(name)
    return Path(found.origin).parent if found and found.origin and found.origin.endswith("__init__.py") else None


def _prose_of_file(file: Path) -> list[list[str]]:
    """Extracts the documents of one file, each a list of paragraphs."""
    try:
        source = file.read_bytes()
        if b'"""' not in source and b"'''" not in source and file.name != "topics.py":
            return []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, OSError, RecursionError):
        return []
    if file.name == "topics.py" and file.parent.name == "pydoc_data":
        return [_prose(topic) for topic in _topics(tree)]
    return [[paragraph for docstring in _docstrings(tree) for paragraph in _prose(docstring)]]


def _topics(tree: ast.Module) -> Iterator[str]:
    """Returns the values of the dictionary in ``pydoc_data.topics``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            yield from (v.value for v in node.values if isinstance(v, ast.Constant) and isinstance(v.value, str))


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node, clean=True)
        if docstring:
            yield docstring
    for child in getattr(node, "body", []):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.If | ast.Try):
            yield from _docstrings(child)


def _prose(text: str) -> list[str]:
    """Yields the paragraphs of ``text`` that read as English."""
    paragraphs: list[str] = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if ">>>" in block or re.search(r"^\s*(?:\.\. [\w-]+::|[-=~^+|]{3,})", block, re.MULTILINE):
            block = block.split(">>>")[0]
        paragraphs += [cleaned for run in _runs(block) if _is_prose(cleaned := _without_markup(run))]
    return paragraphs


def _runs(block: str) -> Iterator[str]:
    """Joins consecutive lines of ``block`` with the same indentation; a bullet begins a new run."""
    lines: list[str] = []
    previous = 0
    for line in block.split("\n"):
        text = line.strip()
        indentation = len(line) - len(line.lstrip())
        bullet = _BULLET.match(text)
        if lines and (bullet or indentation != previous):
            yield " ".join(lines)
            lines = []
        previous = indentation + (bullet.end() if bullet else 0)
        lines.append(text[bullet.end() :] if bullet else text)
    if lines:
        yield " ".join(lines)


def _without_markup(text: str) -> str:
    text = _FOOTNOTE.sub("", _LINK.sub(lambda match: match[1] or match[2], _ROLE.sub(r"\1", text)))
    text = _QUOTED.sub(lambda match: match[2] or match[3], text)
    return " ".join(text.removesuffix("::").split())


def _is_prose(text: str) -> bool:
    """Whether it starts with a capital, ends with a full stop, has enough words and few signs of code."""
    if not (text[:1].isupper() and text.endswith((".", "!", "?")) and len(text.split()) >= _FEWEST_WORDS):
        return False
    return not _CODE.search(text) and len(_LETTERS.findall(text)) >= _PROSE_SHARE * len(text)
