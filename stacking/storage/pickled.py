"""Reads pickles without executing them: plain values and containers are created, everything else becomes a stand-in.

``pickletools`` decodes the opcodes and `_Machine` executes them on a stack. Unlike ``pickle.Unpickler``, it imports and
calls nothing chosen by the file, sets no attributes, hashes no key that is slow to hash or deeply nested, and never
allocates memory for a size that the file merely claims. torch reads untrusted files similarly
(``_weights_only_unpickler``), but rejects every unknown class, whereas such objects are skipped here.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

MOST_OPCODES = 3_000_000
"""Maximum number of opcodes, which takes about ten seconds; a checkpoint has thousands."""
_LONGEST_KEY = 100

_RUNS_CODE = re.compile(
    r"(os|posix|nt|subprocess|sys|importlib|runpy|shutil|pty)\.(?!\w+_(result|info|size)$)[a-z]"
    r"|(builtins|__builtin__)\.(eval|exec|execfile|compile|open|__import__|input|breakpoint|setattr|delattr|apply)$"
    r"|subprocess\.Popen|pathlib\.(_local\.)?\w*Path\.\w"
)
"""Names that no legitimate object needs, and that occur in malicious files."""


class MaliciousPickle(Exception):
    """Raised if the pickle names something that runs code; the message is that name."""


class UnreadablePickle(Exception):
    """Raised if the bytes are not a pickle, or exceed this module's limits."""


class StandIn:
    """Replaces an object that is not needed; knows only the name of its class."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Function:
    """Replaces a class or function whose result is needed: calling it runs ``call``."""

    __slots__ = ("call", "name")

    def __init__(self, name: str, call: Callable[..., Any]) -> None:
        self.name, self.call = name, call


def described(value: Any) -> str:
    """Describes the type of ``value`` in a few words: ``a mytrainer.Options``."""
    return f"a {value.name if isinstance(value, StandIn | Function) else type(value).__name__}"


def read_pickle(file: BinaryIO, known: Mapping[str, Any], storage: Callable[[Any], Any]) -> Any:
    """Reads the pickle at the current position of ``file`` and advances behind it.

    Args:
        known: the replacements of classes and functions by ``module.name``; a `Function` is called. Everything else
            becomes a `StandIn`.
        storage: called with each persistent id, which ``torch.save`` uses for storages.

    Raises:
        MaliciousPickle: the pickle mentions something that runs code.
        UnreadablePickle: the pickle is truncated, malformed, or too large.
    """
    machine = _Machine(known, storage)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count > MOST_OPCODES:
                raise UnreadablePickle(f"it has more than {MOST_OPCODES:,} parts")
            _OPCODES[opcode.name](machine, argument)
        return machine.pop()
    except (MaliciousPickle, UnreadablePickle):
        raise
    except Exception as error:  # malformed opcodes can fail in any way
        raise UnreadablePickle(f"{type(error).__name__} at an opcode") from error


class _Machine:
    def __init__(self, known: Mapping[str, Any], storage: Callable[[Any], Any]) -> None:
        self.known, self.storage = known, storage
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        """The stacks below each mark."""
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def find(self, name: str) -> Any:
        if _RUNS_CODE.match(name):
            raise MaliciousPickle(name)
        return self.known[name] if name in self.known else StandIn(name)

    def get_attribute(self, holder: Any, name: Any) -> Any:
        """Handles ``getattr(CLASS, NAME)``, the pickle of methods and of enums in Python 3.11.0 to 3.11.3."""
        if not isinstance(holder, StandIn | Function) or not isinstance(name, str):
            return StandIn("getattr")
        return self.find(f"{holder.name}.{name}")

    def call(self, function: Any, arguments: Any) -> Any:
        if isinstance(function, Function):
            return function.call(*arguments)
        if isinstance(function, StandIn) and function.name in ("builtins.getattr", "__builtin__.getattr"):
            return self.get_attribute(*arguments)
        return StandIn(function.name if isinstance(function, StandIn) else "object")


def _key(value: Any) -> Any:
    """Returns ``value`` if it is fast to hash, otherwise a unique substitute."""
    if isinstance(value, str | bytes | float | StandIn | None):
        return value
    if isinstance(value, int) and value.bit_length() <= 64:
        return value
    if isinstance(value, tuple) and len(value) <= _LONGEST_KEY:
        return value if all(not isinstance(v, tuple) and _key(v) is v for v in value) else StandIn("tuple")
    return StandIn(type(value).__name__)


def _set_items(holder: Any, items: list[Any]) -> None:
    if isinstance(holder, dict):
        holder.update((_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))


def _append(holder: Any, items: list[Any]) -> None:
    if isinstance(holder, list):
        holder.extend(items)


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    _set_items(machine.stack[-1], [key, value])


def _set_all(machine: _Machine, _: Any) -> None:
    items = machine.pop_mark()
    _set_items(machine.stack[-1], items)


def _append_one(machine: _Machine, _: Any) -> None:
    value = machine.pop()
    _append(machine.stack[-1], [value])


def _append_all(machine: _Machine, _: Any) -> None:
    items = machine.pop_mark()
    _append(machine.stack[-1], items)


def _frozen_set(machine: _Machine, _: Any) -> None:
    machine.pop_mark()
    machine.push(StandIn("frozenset"))


def _drop_mark(machine: _Machine, _: Any) -> None:
    machine.pop_mark()


def _drop(machine: _Machine, _: Any) -> None:
    machine.pop()


def _pairs(machine: _Machine) -> dict[Any, Any]:
    pairs: dict[Any, Any] = {}
    _set_items(pairs, machine.pop_mark())
    return pairs


def _mark(machine: _Machine, _: Any) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


def _pop(machine: _Machine, _: Any) -> None:
    if machine.stack:
        machine.pop()
    else:
        machine.pop_mark()


def _last(count: int) -> Callable[[_Machine, Any], None]:
    def make(machine: _Machine, _: Any) -> None:
        items = tuple(machine.pop() for _ in range(count))
        machine.push(items[::-1])

    return make


def _put(machine: _Machine, index: Any) -> None:
    machine.memo[int(index)] = machine.stack[-1]


def _memoize(machine: _Machine, _: Any) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise UnreadablePickle("it has a class without a name")
    machine.push(machine.find(f"{module}.{name}"))


def _reduce(machine: _Machine, _: Any) -> None:
    arguments, function = machine.pop(), machine.pop()
    machine.push(machine.call(function, arguments))


def _new_with_keywords(machine: _Machine, _: Any) -> None:
    _, arguments, function = machine.pop(), machine.pop(), machine.pop()
    machine.push(machine.call(function, arguments))


def _instance(machine: _Machine, name: Any) -> None:
    arguments = machine.pop_mark()
    machine.push(machine.call(machine.find(name.replace(" ", ".", 1)), arguments))


def _object(machine: _Machine, _: Any) -> None:
    function, *arguments = machine.pop_mark()
    machine.push(machine.call(function, arguments))


def _persistent(machine: _Machine, _: Any) -> None:
    machine.push(machine.storage(machine.pop()))


def _nothing(_: _Machine, __: Any) -> None: ...


def _push(value: Callable[[_Machine, Any], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, argument: machine.push(value(machine, argument))


_ARGUMENT = _push(lambda _, argument: argument)
_EXTENSION = _push(lambda _, code: StandIn(f"copyreg extension {code}"))

_OPCODES: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), _ARGUMENT),
    **dict.fromkeys(("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"), _ARGUMENT),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _ARGUMENT),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _ARGUMENT),
    "NONE": _push(lambda _, __: None),
    "NEWTRUE": _push(lambda _, __: True),
    "NEWFALSE": _push(lambda _, __: False),
    "BYTEARRAY8": _push(lambda _, __: StandIn("bytearray")),
    "NEXT_BUFFER": _push(lambda _, __: StandIn("buffer")),
    "READONLY_BUFFER": _nothing,
    "EMPTY_LIST": _push(lambda _, __: []),
    "LIST": _push(lambda machine, _: machine.pop_mark()),
    "APPEND": _append_one,
    "APPENDS": _append_all,
    "EMPTY_TUPLE": _push(lambda _, __: ()),
    "TUPLE": _push(lambda machine, _: tuple(machine.pop_mark())),
    "TUPLE1": _last(1),
    "TUPLE2": _last(2),
    "TUPLE3": _last(3),
    "EMPTY_DICT": _push(lambda _, __: {}),
    "DICT": _push(lambda machine, _: _pairs(machine)),
    "SETITEM": _set_item,
    "SETITEMS": _set_all,
    "EMPTY_SET": _push(lambda _, __: StandIn("set")),
    "ADDITEMS": _drop_mark,
    "FROZENSET": _frozen_set,
    "MARK": _mark,
    "POP": _pop,
    "POP_MARK": _drop_mark,
    "DUP": _push(lambda machine, _: machine.stack[-1]),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _push(lambda machine, index: machine.memo[int(index)])),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    "MEMOIZE": _memoize,
    "GLOBAL": _push(lambda machine, name: machine.find(name.replace(" ", ".", 1))),
    "STACK_GLOBAL": _stack_global,
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _EXTENSION),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _reduce),
    "NEWOBJ_EX": _new_with_keywords,
    "INST": _instance,
    "OBJ": _object,
    "BUILD": _drop,
    "PERSID": _push(lambda machine, pid: machine.storage(pid)),
    "BINPERSID": _persistent,
}
"""The effect of each opcode of protocols 0 to 5. BUILD sets no attributes, since no object here has any."""
