"""Checks what lies between the ranks: bandwidth, clocks, and whether the nodes are alike."""

from __future__ import annotations

from collections.abc import Iterator

from stacking.doctor.facts import Facts
from stacking.doctor.finding import Finding, Level
from stacking.terminal.units import counted

_MUCH_SKEW = 1.0
"""Seconds; beyond this, the journals of several nodes order events wrongly."""
_SLOW_NETWORK = 1e9
"""Bytes/s between nodes: a link of 10 Gb/s."""


def transfers(facts: Facts) -> Iterator[Finding]:
    """Checks that collective operations are correct and fast enough."""
    found = facts.collectives
    if (failure := facts.failures.get("collectives")) is not None:
        advice = "check the network between the nodes; set NCCL_DEBUG=INFO or TORCH_DISTRIBUTED_DEBUG=DETAIL"
        yield Finding("error", "collectives", f"ranks cannot talk to each other: {failure}", advice)
    if found is None:
        return
    for wrong in found.wrong:
        advice = "do not train here: update NCCL and the driver, and test the memory and the network"
        yield Finding("error", "collectives", f"{wrong} gave wrong results", advice)
    for refused in found.refused:
        yield Finding("warning", "collectives", f"{found.backend} refused {refused}", "use ZeRO stage 0 here")
    best = list({t.operation: t for t in sorted(found.transfers, key=lambda t: t.bytes)}.values())
    if not best:
        return
    rates = ", ".join(f"{t.operation} {t.bandwidth / 1e9:.2f}" for t in best)
    delay = f"; {_brief(found.latency_seconds)} for one number" if found.latency_seconds else ""
    where = f"{counted(found.ranks, 'rank')} on {counted(found.nodes, 'node')}"
    said = f"{rates} GB/s ({best[0].bytes >> 20} MiB, {found.backend}, {where}){delay}"
    slow = found.nodes > 1 and found.backend == "nccl" and min(t.bandwidth for t in best) < _SLOW_NETWORK
    advice = (
        "set `interface` in the site file to the fast network; NCCL_DEBUG=INFO shows the one in use" if slow else ""
    )
    yield Finding("warning" if slow else "ok", "collectives", said, advice)


def clocks(facts: Facts) -> Iterator[Finding]:
    """Compares the clocks of the nodes with rank 0's."""
    skews = facts.collectives.skews if facts.collectives else ()
    if not skews:
        return
    worst = max(skews, key=lambda skew: abs(skew.seconds))
    direction = "ahead" if worst.seconds >= 0 else "behind"
    found = f"{worst.host} is {_brief(abs(worst.seconds))} {direction} (to within {_brief(worst.uncertainty)})"
    if abs(worst.seconds) - worst.uncertainty > _MUCH_SKEW:
        advice = "let chrony or ntpd run on all nodes: journals and estimates mix their times"
        yield Finding("warning", "clocks", found, advice)
    else:
        yield Finding("ok", "clocks", found)


def nodes(facts: Facts) -> Iterator[Finding]:
    """Checks that all ranks have the same software and device and see the run's folder."""
    members = facts.collectives.members if facts.collectives else ()
    blind = sorted({member.host for member in members if not member.sees_folder})
    if blind:
        path = facts.folder.path if facts.folder else "the run's folder"
        advice = "choose a --run-dir on a file system that all nodes see"
        yield Finding("error", "nodes", f"{', '.join(blind)} cannot see {path}", advice)
    for name in ("torch", "python", "device"):
        values = {getattr(member, name): member.host for member in members}
        if len(values) > 1:
            found = ", ".join(f"{value} on {host}" for value, host in sorted(values.items()))
            level: Level = "error" if name == "torch" else "warning"
            yield Finding(level, "nodes", f"differ in {name}: {found}", "make them the same")


def _brief(seconds: float) -> str:
    """Formats seconds: ``1.2 s``, ``34 ms``, ``5 µs``."""
    size, unit = next(((s, u) for s, u in ((1, "s"), (1e-3, "ms")) if seconds >= s), (1e-6, "µs"))
    return f"{seconds / size:.3g} {unit}"
