"""The command line of `tools/fuzz`."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from tests.fuzz.fuzzer import Findings, fuzz
from tests.fuzz.targets import TARGETS


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", type=float, default=10, show_default=True, help="In all, shared evenly by the targets.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--target", "names", multiple=True, type=click.Choice(list(TARGETS)), help="Only this one; repeatable.")
@click.option("--out", type=click.Path(path_type=Path), help="Keep the smallest file of each fault in this folder.")
def main(minutes: float, seed: int, names: tuple[str, ...], out: Path | None) -> None:
    """Fuzz the readers of files: each may return or refuse in one line; no traceback, no hang, no memory.

    Exit code 1 if anything was found.
    """
    chosen = names or tuple(TARGETS)
    click.echo("| reader | read | refused | faults |\n| --- | ---: | ---: | ---: |")
    found: dict[str, Findings] = {}
    for name in chosen:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            findings = fuzz(name, Path(folder), seed, _until(time.monotonic() + 60 * minutes / len(chosen)))
        counts = findings.counts
        bad = counts.total() - counts["ok"] - counts["refused"]
        click.echo(f"| {name} | {counts['ok']:,} | {counts['refused']:,} | {bad:,} |")
        found[name] = findings
    for name, findings in found.items():
        for number, (fault, content) in enumerate(sorted(findings.faults.items())):
            click.echo(f"{name}: {fault} ({len(content):,} bytes)")
            if out:
                out.mkdir(parents=True, exist_ok=True)
                (out / f"{name.replace(' ', '-')}-{number}").write_bytes(content)
    sys.exit(any(findings.faults for findings in found.values()))


def _until(deadline: float) -> Callable[[int], bool]:
    return lambda _: time.monotonic() < deadline
