"""Explains a rank's failure from its log: by the exception and its subject, not by the last line printed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_TRACEBACK = "Traceback (most recent call last):"
_EXCEPTION = re.compile(
    r"^(?:\[rank\d+\]: ?)?([A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|Warning|Invalid|Timeout))(?:: (.*))?$"
)
_LONGEST = 400
_RANK = re.compile(r"^\[rank\d+\]: ?")


def meaning(lines: Sequence[str]) -> str:
    """Describes the last exception in a log in one line, with a remedy if its kind is known; empty without one.

    A process that C++ code ended leaves no traceback; then the last lines that C++ code and the system print decide.
    """
    found = _last_exception(lines)
    if found is None:
        return next((tell for pattern, tell in _LAST_WORDS if any(map(pattern.search, lines))), "")
    name, message = found
    for pattern, tell in _KINDS:
        match = pattern.search(f"{name}: {' '.join(message)}")
        if match:
            told = match.expand(tell) if isinstance(tell, str) else tell(match, [name, *message], lines)
            return _short(told)
    first = next((line.strip() for line in message if line.strip()), "")
    return _short(f"{name}: {first}" if first else name)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _last_exception(lines: Sequence[str]) -> tuple[str, list[str]] | None:
    """Returns the class and message lines of the exception after the last traceback."""
    plain = [_RANK.sub("", line) for line in lines]
    starts = [i for i, line in enumerate(plain) if line.strip() == _TRACEBACK]
    for start in reversed(starts):
        for i in range(start + 1, len(plain)):
            match = None if plain[i][:1].isspace() else _EXCEPTION.match(plain[i])
            if match:
                end = next((k for k in range(i + 1, len(plain)) if _is_other(plain[k])), len(plain))
                return match[1].rpartition(".")[2], [match[2] or "", *plain[i + 1 : min(end, i + 40)]]
    return None


def _is_other(line: str) -> bool:
    """Returns whether a line does not continue the message before it."""
    return line.strip() == _TRACEBACK or bool(
        re.match(r"^\[(W|E|I|\d{4}-)|^W\d{4} |^E\d{4} |^The above exception", line)
    )


def _configuration(match: re.Match[str], message: list[str], lines: Sequence[str]) -> str:
    """Parses pydantic's message: ``1 validation error for X``, then a key, then the problem."""
    parts = [line.strip() for line in message[1:] if line.strip()]
    key = parts[1] if len(parts) > 2 else match[1]
    wrong = re.sub(r"\s*\[type=.*", "", parts[2] if len(parts) > 2 else parts[-1])
    return f"DeepSpeed rejects the ds_config: {match[1]}: {key}: {wrong.removeprefix('Value error, ')}"


def _memory(match: re.Match[str], message: list[str], lines: Sequence[str]) -> str:
    wanted = re.search(r"(?:[Tt]ried|Unable) to allocate ([\d.]+ ?[KMGT]?i?B|\d+ bytes)", " ".join(message))
    size = f" ({wanted[1]} more requested)" if wanted else ""
    return f"out of memory{size}; use a smaller micro_batch, activation checkpointing or a higher ZeRO stage"


def _collective(match: re.Match[str], message: list[str], lines: Sequence[str]) -> str:
    said = next((line.strip() for line in message[1:] if line.strip()), "")
    return f"the ranks lost contact ({said}); see the log of the rank that failed first; NCCL_DEBUG=INFO gives details"


def _kernel(match: re.Match[str], message: list[str], lines: Sequence[str]) -> str:
    fault = next((line.strip() for line in lines if re.search(r"\b(fatal )?error:", line)), "")
    reason = f" ({fault})" if fault else ""
    kernel = f"DeepSpeed's kernel {match[1] or match[2]}"
    return f"{kernel} could not be compiled{reason}; `stacking doctor` checks the compilers"


_Tell = str | Callable[[re.Match[str], list[str], Sequence[str]], str]
"""A template for `re.Match.expand`, or a function of the match, the exception's lines and the log."""
_KINDS: tuple[tuple[re.Pattern[str], _Tell], ...] = (
    (re.compile(r"validation errors? for (\w+)"), _configuration),
    (re.compile(r"OutOfMemoryError|CUDA out of memory|DefaultCPUAllocator|^_?(?:Array)?MemoryError"), _memory),
    (
        re.compile(r"No module named '([^']+)'"),
        r"the package \1 is not installed; install it, or disable the feature that needs it",
    ),
    (
        re.compile(r"(\S+\.so[\d.]*): cannot open shared object file"),
        r"the shared library \1 was not found; load the module that has it, or set LD_LIBRARY_PATH",
    ),
    (
        re.compile(r"EADDRINUSE|[Aa]ddress already in use"),
        "the ranks' meeting point is taken by another process (address already in use); start again",
    ),
    (
        re.compile(r"no kernel image is available"),
        "this torch has no code for this GPU; `stacking doctor` names the GPUs that it was built for",
    ),
    (
        re.compile(r"Ninja is required to load C\+\+ extensions"),
        "a kernel must be compiled and ninja was not found; run 'pip install ninja'",
    ),
    (re.compile(r"Error building extension '(\w+)'|Unable to JIT load the (\w+) op"), _kernel),
    (
        re.compile(r"CUDA_HOME (?:does not exist|environment variable is not set)|MissingCUDAException"),
        "a kernel must be compiled and no CUDA toolkit was found; install it, or set CUDA_HOME to its path",
    ),
    (
        re.compile(r"Unable to find address for: ([^\s\]]+)"),
        r"this machine has no network interface \1; correct GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME (`ip link` lists "
        "the names)",
    ),
    (
        re.compile(r"Duplicate GPU detected"),
        "two ranks have the same GPU; start one rank per GPU, and look at CUDA_VISIBLE_DEVICES",
    ),
    (
        re.compile(r"NCCL|DistBackendError|gloo|Connection (?:closed|reset) by peer|collective operation timeout"),
        _collective,
    ),
)
"""Kinds of failures; the first match wins."""

_LAST_WORDS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"Watchdog caught collective operation timeout|Heartbeat monitor timed out"),
        "the ranks lost contact (a collective operation timed out); see the log of the rank that failed first; "
        "NCCL_DEBUG=INFO gives details",
    ),
    (
        re.compile(r"oom[-_ ]?kill|Out of memory: Killed process", re.IGNORECASE),
        "out of memory on the host; use fewer ranks per node or a smaller micro_batch",
    ),
    (
        re.compile(r"insufficient shared memory|unable to (?:mmap|write to file).*(?:shm|torch_)"),
        "no shared memory is left; raise the limit of /dev/shm",
    ),
    (re.compile(r"illegal instruction|Illegal instruction"), "this build uses instructions that this processor lacks"),
)
"""What C++ code and the system print before a process ends; the first match wins."""
