"""The command line of `tools/fuzz`."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import click

from stacking import __version__
from tests.fuzz.fuzzer import CPU_SECONDS, Findings, Worker, fuzz
from tests.fuzz.results import Sitting, append_sitting, as_markdown, read_sittings
from tests.fuzz.targets import TARGETS
from tests.fuzz.worker import MEMORY


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", type=float, default=10, show_default=True, help="In all, shared evenly by the readers.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--reader", "names", multiple=True, type=click.Choice(list(TARGETS)), help="Only this one; repeatable.")
@click.option("--faults", type=click.Path(path_type=Path), help="Keep the smallest file of each fault in this folder.")
@click.option("--results", type=click.Path(path_type=Path), help="Record each reader here, and continue from there.")
@click.option("--write", type=click.Path(path_type=Path), help="Write the table to this file too: docs/fuzz.md.")
def main(
    minutes: float, seed: int, names: tuple[str, ...], faults: Path | None, results: Path | None, write: Path | None
) -> None:
    """Fuzz the readers of files: each may return or refuse in one line; no traceback, no hang, no memory.

    Exit code 1 if anything was found.
    """
    chosen = names or tuple(TARGETS)
    before = read_sittings(results) if results else []
    sittings = [sitting for sitting in before if sitting.seed == seed]
    for name in chosen:
        done = [sitting.seconds for sitting in sittings if sitting.target == name]
        left = 60 * minutes / len(chosen) - sum(done)
        if left < 1:
            continue
        sitting, found = _sit(name, f"{seed} {len(done)}", seed, left)
        sittings.append(sitting)
        if results:
            append_sitting(results, sitting)
        if faults:
            _keep(faults, name, found)
        click.echo(f"{name}: {sum(sitting.counts.values()):,} files, {len(sitting.faults)} faults", err=True)
    table = as_markdown(sittings)
    click.echo(table, nl=False)
    if write:
        write.parent.mkdir(parents=True, exist_ok=True)
        write.write_text(f"{_heading(seed)}\n{table}", encoding="utf-8")
    sys.exit(any(sitting.faults for sitting in sittings))


def _sit(name: str, draws: str, seed: int, seconds: float) -> tuple[Sitting, Findings]:
    """Fuzz one reader for ``seconds``; equal ``draws`` draw the same files."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, Worker(name, Path(folder)) as worker:
        deadline = time.monotonic() + seconds
        found = fuzz(worker, draws, lambda _: time.monotonic() < deadline)
    faults = [f"{fault} ({len(content):,} bytes)" for fault, content in sorted(found.faults.items())]
    return Sitting(name, seed, seconds, dict(found.counts), faults), found


def _keep(folder: Path, name: str, found: Findings) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (_, content) in enumerate(sorted(found.faults.items())):
        (folder / f"{name.replace(' ', '-')}-{number}").write_bytes(content)


def _heading(seed: int) -> str:
    return f"""# Fuzzing

`tools/fuzz --write docs/fuzz.md` wrote this page (version {__version__}, seed {seed}). Each reader gets valid files
with one to three changes, most of which leave the file well formed, and pickles made up of opcodes. Seals and checksums
are made to fit again, so that what lies behind them is tried too. A reader may return, or refuse in one line. A
traceback, {CPU_SECONDS:.0f} s of computing, or {MEMORY >> 20} MiB beyond the size of the file is a fault.
"""
