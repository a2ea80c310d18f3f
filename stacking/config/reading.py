"""Reads YAML and JSON files strictly: every mistake becomes a one-line error that names its location."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from stacking.errors import UserError

_LISTED = 20
"""Maximum number of names listed in one line."""
_COMPARED, _LONGEST_NAME = 1_000, 100
"""Maximum number of names to compare a misspelt name with, and maximum length of such a name."""
_LARGEST = 16 << 20
"""Maximum size of a user's file, in bytes."""
_LARGEST_YAML, _MOST_NODES = 256 << 10, 200_000
"""Maximum number of characters of a YAML text, which is slow to parse, and of values with aliases expanded."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns a remedy for a misspelt ``name``: the nearest of ``names``, or all of them if they are few."""
    names = list(islice(names, _COMPARED))
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.6) if len(name) <= _LONGEST_NAME else []
    if found:
        return f"did you mean {found[0]!r}?"
    return f"choose one of {', '.join(names)}" if len(names) <= _LISTED else "remove it: no known name is similar"


def shown(value: Any) -> str:
    """Formats a value as in the file, shortened to fit on a line."""
    try:
        text = "a mapping" if isinstance(value, dict) else json.dumps(value, default=str, ensure_ascii=False)
    except (RecursionError, ValueError):  # nested too deeply, or recursive
        text = "a nested value"
    return text if len(text) <= 60 else f"{text[:57]}..."


def one_of(names: Iterable[str]) -> BeforeValidator:
    """Validates that a value is one of ``names``, evaluated at each read so that new table rows are accepted."""

    def check(value: Any) -> Any:
        if not isinstance(value, str) or value not in names:
            raise complaint(f"is {shown(value)}", nearest(str(value), names))
        return value

    return BeforeValidator(check)


def complaint(problem: str, remedy: str) -> PydanticCustomError:
    """Returns an exception for validators; ``user_error`` turns it into a UserError that names the location."""
    return PydanticCustomError("complaint", "{problem}", {"problem": problem, "remedy": remedy})


def _one_word(value: str) -> str:
    if not value or re.search(r"""[\s"'#\\]|[^\x21-\x7e]""", value):
        raise complaint(f"is {shown(value)}, not a plain word", "write it without spaces, quotes, # and \\")
    return value


Word = Annotated[str, AfterValidator(_one_word)]
"""A value for unquoted use in a line that no shell reads, such as ``#SBATCH --partition=…``."""


class Section(BaseModel):
    """A group of keys in a user's file: unknown keys and values of another type are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


def read_text(path: Path) -> str:
    """Returns the UTF-8 text of a user's file."""
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise UserError(path, f"is larger than {_LARGEST >> 20} MiB", "check the path")
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        raise UserError(path, "does not exist", "check the path") from None
    except IsADirectoryError:
        raise UserError(path, "is a folder", "give a file") from None
    except UnicodeDecodeError as error:
        raise UserError(path, f"is not UTF-8 (byte {error.start:,})", "save it as UTF-8") from None
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", "check the path and its permissions") from None
    except ValueError as error:  # a NUL in its name
        raise UserError(path, f"cannot be read ({error})", "check the path") from None


class _Loader(yaml.SafeLoader):
    """Reads YAML 1.1 like PyYAML, except that duplicate keys are errors.

    ``1e-4`` is a number, ``24:00:00`` and ``0123`` are not: an account of the latter form would change in base 8.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key.value, str):
                raise yaml.MarkedYAMLError(problem="a key must be a name", problem_mark=key.start_mark)
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)
_NO_NUMBER = re.compile(r"^[-+]?(\d[\d_]*(:[0-5]?\d)+(\.\d*)?|0[0-7_]+)$")
for _first in "-+0123456789":  # takes precedence over the resolvers for numbers in base 60 and 8
    _Loader.yaml_implicit_resolvers[_first].insert(0, ("tag:yaml.org,2002:str", _NO_NUMBER))


def _check_size(root: yaml.Node) -> None:
    """Rejects documents that become recursive or too large when their aliases are expanded.

    Raises:
        yaml.MarkedYAMLError: an alias contains itself, or the expanded document is too large.
    """
    sizes: dict[int, int] = {}
    entered: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in entered:
            raise yaml.MarkedYAMLError(problem="an alias stands for itself", problem_mark=node.start_mark)
        if id(node) not in sizes:
            entered.add(id(node))
            inside = node.value if isinstance(node, yaml.CollectionNode) else ()
            nodes = (part for item in inside for part in (item if isinstance(item, tuple) else (item,)))
            sizes[id(node)] = 1 + sum(map(size, nodes))
            entered.discard(id(node))
        return sizes[id(node)]

    if size(root) > _MOST_NODES:
        problem = f"its aliases stand for more than {_MOST_NODES:,} values"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=root.start_mark)


def parse_yaml(text: str, where: str) -> Any:
    """Parses a YAML text.

    Raises:
        UserError: the syntax is invalid or a key is duplicated; the message names the line.
    """
    if len(text) > _LARGEST_YAML:
        raise UserError(where, f"is larger than {_LARGEST_YAML >> 10} KiB", "check the path")
    try:
        loader = _Loader(text)  # a SafeLoader
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = f": line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = str(error.problem)
        if "given twice" in problem:
            raise UserError(where + line, problem, "keep one of them") from None
        if "alias" in problem:
            raise UserError(where + line, problem, "write the values out") from None
        raise UserError(where + line, f"is not YAML ({problem})", "check the indentation and the colons") from None
    except RecursionError:
        raise UserError(where, "is nested too deeply", "check its brackets") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(where, f"is not YAML ({str(error).partition(';')[0]})", "check the file") from None
    except Exception:  # PyYAML does not check that a value matches its tag
        raise UserError(where, "has a tag that does not fit its value", "remove the tag that begins with !!") from None


def read_yaml_mapping(path: Path) -> dict[str, Any]:
    """Reads a YAML file that holds a mapping.

    Raises:
        UserError: the file is missing, not UTF-8, not YAML, or not a mapping of names to values.
    """
    value = parse_yaml(read_text(path), str(path))
    if not isinstance(value, dict):
        found = "empty" if value is None else shown(value)
        raise UserError(path, f"is {found} where keys and values are expected", "start it with lines like 'key: value'")
    return value


def keys_once(path: Path) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """Returns an ``object_pairs_hook`` that refuses a key given twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise UserError(f"{path}: {key}", "is given twice", "keep one of them")
            found[key] = value
        return found

    return unique


def parse_json(path: Path, text: str) -> Any:
    """Parses the JSON text of a file.

    Raises:
        json.JSONDecodeError: the syntax is invalid.
        UserError: a key is duplicated, it is nested too deeply, or has a number of thousands of digits.
    """
    try:
        return json.loads(text, object_pairs_hook=keys_once(path))
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise UserError(path, "is nested too deeply", "check its brackets") from None
    except ValueError as error:
        raise UserError(path, f"is not JSON ({str(error).partition(';')[0]})", "correct it") from None


def read_json_mapping(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        UserError: the file is missing, not JSON (names the line), not an object, or has a duplicate key.
    """
    try:
        value = parse_json(path, read_text(path))
    except json.JSONDecodeError as error:
        place = f"{path}: line {error.lineno}"
        raise UserError(place, f"is not JSON ({error.msg})", "check commas, quotes and brackets") from None
    if not isinstance(value, dict):
        raise UserError(path, f"is {shown(value)}, not an object", "start it with '{'")
    return value


def dotted(location: Sequence[int | str]) -> str:
    """Formats ``("stages", 1, "layers")`` as ``stages[1].layers``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def user_error(error: ValidationError, model: type[BaseModel], where: str | Path) -> UserError:
    """Converts pydantic's first error about ``model`` to one line, with the number of further errors."""
    try:
        details = error.errors(include_url=False)
    except UnicodeEncodeError:
        return UserError(where, "holds half of a surrogate pair", "write the character itself")
    first = details[0]
    location, holder = _walk(model, first["loc"])
    problem, remedy = _words(first, str(location[-1]) if location else "", holder)
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    place = f"{where}: {dotted(location)}" if location else str(where)
    return UserError(place, problem, remedy + more)


def _walk(model: type[BaseModel], location: Sequence[int | str]) -> tuple[list[int | str], type[BaseModel]]:
    """Returns the location without pydantic's union tags, and the model that has its last part as a key."""
    kept: list[int | str] = []
    holder, below = model, [model]
    for part in location:
        if isinstance(part, int):
            kept.append(part)
            continue
        tagged = [m for m in below if "kind" in m.model_fields and part in get_args(m.model_fields["kind"].annotation)]
        if tagged and part not in below[0].model_fields:
            below = tagged
            continue
        kept.append(part)
        holder = below[0] if below else holder
        field = holder.model_fields.get(part)
        below = _models_in(field.annotation) if field else []
    return kept, holder


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Returns every model class inside a type such as ``tuple[Stage, ...]`` or ``Growth | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]


_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values",
}
_BOUNDS = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}
_BOUND_WORDS = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}


def _words(detail: ErrorDetails, key: str, holder: type[BaseModel]) -> tuple[str, str]:
    """Returns the problem and remedy of one of pydantic's errors."""
    kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "complaint":
        return str(context["problem"]), str(context["remedy"])
    if kind == "extra_forbidden":
        return "is not a known key", nearest(key, holder.model_fields)
    if kind == "missing":
        field = holder.model_fields.get(key)
        description = (field.description or "").split(".")[0] if field else ""
        return "is missing", f"add it: {description[:1].lower()}{description[1:]}" if description else "add it"
    if kind == "literal_error":
        names = re.findall(r"'([^']*)'", str(context["expected"]))
        return f"is {shown(given)}", nearest(str(given), names)
    if kind == "union_tag_invalid":
        names = re.findall(r"'([^']*)'", str(context["expected_tags"]))
        return f"has the kind {str(context['tag'])!r}", nearest(str(context["tag"]), names)
    if kind in _BOUNDS:
        bound = _BOUNDS[kind]
        return f"is {shown(given)}", f"give a number {_BOUND_WORDS[bound]} {context[bound]:,}"
    if kind in _TYPES:
        return f"is {shown(given)}, which is not {_TYPES[kind]}", f"give {_TYPES[kind]}"
    if kind == "invalid_key":
        return "is not a name", "write keys as text"
    if kind == "too_short":
        return "is empty", "add at least one item"
    return f"is {shown(given)} ({detail['msg']})", "correct it"
