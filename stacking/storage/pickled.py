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
"""Maximum number of opcodes, which take about ten seconds to read; a checkpoint has thousands."""
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
    """Reads the pickle at the current position of ``file`` and advances past it.

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

    def pop_last(self, count: int) -> list[Any]:
        """Pops several values, in the order in which they were pushed."""
        return [self.stack.pop() for _ in range(count)][::-1]

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def append(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(_pairs(items))

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


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _key(value: Any) -> Any:
    """Returns ``value`` if it is fast to hash, otherwise a unique substitute."""
    if isinstance(value, str | bytes | float | StandIn | None):
        return value
    if isinstance(value, int) and value.bit_length() <= 64:
        return value
    if isinstance(value, tuple) and len(value) <= _LONGEST_KEY:
        return value if all(not isinstance(v, tuple) and _key(v) is v for v in value) else StandIn("tuple")
    return StandIn(type(value).__name__)


def _pop(machine: _Machine, _: Any) -> None:
    if machine.stack:
        machine.pop()
    else:
        machine.pop_mark()


def _frozen_set(machine: _Machine, _: Any) -> None:
    machine.pop_mark()
    machine.push(StandIn("frozenset"))


def _object(machine: _Machine, _: Any) -> None:
    function, *arguments = machine.pop_mark()
    machine.push(machine.call(function, arguments))


def _nothing(_: _Machine, __: Any) -> None: ...


def _push(value: Callable[[_Machine, Any], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, argument: machine.push(value(machine, argument))


_ARGUMENT = _push(lambda _, argument: argument)
_CALL = _push(lambda m, _: m.call(*m.pop_last(2)))
_EXTENSION = _push(lambda _, code: StandIn(f"copyreg extension {code}"))

_OPCODES: dict[str, Callable[[_Machine, Any], object]] = {
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
    "LIST": _push(lambda m, _: m.pop_mark()),
    "APPEND": lambda m, _: m.append(m.pop_last(1)),
    "APPENDS": lambda m, _: m.append(m.pop_mark()),
    "EMPTY_TUPLE": _push(lambda _, __: ()),
    "TUPLE": _push(lambda m, _: tuple(m.pop_mark())),
    "TUPLE1": _push(lambda m, _: tuple(m.pop_last(1))),
    "TUPLE2": _push(lambda m, _: tuple(m.pop_last(2))),
    "TUPLE3": _push(lambda m, _: tuple(m.pop_last(3))),
    "EMPTY_DICT": _push(lambda _, __: {}),
    "DICT": _push(lambda m, _: _pairs(m.pop_mark())),
    "SETITEM": lambda m, _: m.set_items(m.pop_last(2)),
    "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
    "EMPTY_SET": _push(lambda _, __: StandIn("set")),
    "ADDITEMS": lambda m, _: m.pop_mark(),
    "FROZENSET": _frozen_set,
    "MARK": lambda m, _: m.mark(),
    "POP": _pop,
    "POP_MARK": lambda m, _: m.pop_mark(),
    "DUP": _push(lambda m, _: m.stack[-1]),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _push(lambda m, index: m.memo[int(index)])),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda m, index: m.remember(int(index))),
    "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
    "GLOBAL": _push(lambda m, name: m.find(name.replace(" ", ".", 1))),
    "STACK_GLOBAL": _push(lambda m, _: m.find(".".join(m.pop_last(2)))),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _EXTENSION),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _CALL),
    "NEWOBJ_EX": _push(lambda m, _: m.call(*m.pop_last(3)[:2])),
    "INST": _push(lambda m, name: m.call(m.find(name.replace(" ", ".", 1)), m.pop_mark())),
    "OBJ": _object,
    "BUILD": lambda m, _: m.pop(),
    "PERSID": _push(lambda m, pid: m.storage(pid)),
    "BINPERSID": _push(lambda m, _: m.storage(m.pop())),
}
"""The effect of each opcode of protocols 0 to 5. BUILD sets no attributes, since no object here has any."""
