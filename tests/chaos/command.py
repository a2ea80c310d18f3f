"""The command line of `tools/chaos`."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import click

from stacking import __version__
from tests.chaos import clocks, clusters, damage, disks, kills
from tests.chaos.results import BAD, Result, append_results, as_markdown, read_results
from tests.chaos.workshop import Workshop

Play = Callable[[Workshop, int, int], list[Result]]
PLAYS: Mapping[str, Play] = {
    "kill": kills.play,
    "damage": lambda workshop, seed, number: [damage.play(workshop, seed, number)],
    "disk": disks.play,
    "clock": clocks.play,
    "cluster": clusters.play,
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--kills", type=click.IntRange(min=0), default=200, show_default=True, help="Signals to send.")
@click.option("--damages", type=click.IntRange(min=0), default=200, show_default=True, help="Files to damage.")
@click.option("--disks", "full_disks", type=click.IntRange(min=0), default=10, show_default=True, help="Disks to fill.")
@click.option("--clocks", "jumps", type=click.IntRange(min=0), default=20, show_default=True, help="Clock jumps.")
@click.option("--clusters", "storms", type=click.IntRange(min=0), default=50, show_default=True, help="On a SLURM.")
@click.option("--minutes", type=float, default=60, show_default=True, help="Begin nothing new after this time.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="A folder for runs; kept and used again.")
@click.option("--results", type=click.Path(path_type=Path), help="Default: results.jsonl in --work. Continued.")
@click.option("--only", metavar="KIND:SEED:NUMBER", help="Play one event of the results again, and print it.")
@click.option("--table", is_flag=True, help="Print the tables of the results, and play nothing.")
@click.option("--write", type=click.Path(path_type=Path), help="Write the tables to this file too: docs/chaos.md.")
def main(
    kills: int,
    damages: int,
    full_disks: int,
    jumps: int,
    storms: int,
    minutes: float,
    seed: int,
    work: Path,
    results: Path | None,
    only: str | None,
    table: bool,
    write: Path | None,
) -> None:
    """Disturb real chains and compare their output with that of undisturbed ones, bit by bit.

    Exit code 1 if anything was lost, different, undetected, misreported or ended with a traceback.
    """
    file = results or work / "results.jsonl"
    wanted = {"kill": kills, "damage": damages, "clock": jumps}
    wanted |= {"disk": full_disks if disks.possible() else 0, "cluster": storms if clusters.possible() else 0}
    if only:
        kind, of_seed, number = only.split(":")
        _print(PLAYS[kind](Workshop(work), int(of_seed), int(number)))
        return
    if not table:
        _play(Workshop(work), file, wanted, seed, time.monotonic() + 60 * minutes)
    found = read_results(file)
    tables = as_markdown(found)
    click.echo(tables)
    if write:
        write.parent.mkdir(parents=True, exist_ok=True)
        write.write_text(f"{_heading(found)}\n{tables}", encoding="utf-8")
    sys.exit(any(result.outcome in BAD for result in found))


def _play(workshop: Workshop, file: Path, wanted: Mapping[str, int], seed: int, deadline: float) -> None:
    """Play what is missing, starting with the kind that is furthest behind, and record it."""
    last: dict[str, int] = {}
    while time.monotonic() < deadline:
        found = [result for result in read_results(file) if result.seed == seed]
        have = Counter(result.kind for result in found)
        behind = {kind: have[kind] / count for kind, count in wanted.items() if have[kind] < count}
        if not behind:
            return
        kind = min(behind, key=lambda each: behind[each])
        # A chain may end before any of its signals is sent, and leave no result.
        recorded = max((result.number for result in found if result.kind == kind), default=-1)
        last[kind] = number = max(recorded, last.get(kind, -1)) + 1
        made = [_without(workshop.folder, result) for result in PLAYS[kind](workshop, seed, number)]
        append_results(file, made)
        _print(made)


def _without(folder: Path, result: Result) -> Result:
    """The result with paths relative to ``folder``."""
    prefix = f"{folder}/"
    details = [detail.replace(prefix, "") for detail in result.details]
    return replace(result, message=result.message.replace(prefix, ""), details=details)


def _print(results: list[Result]) -> None:
    for result in results:
        event = f"{result.kind} {result.seed}:{result.number}"
        click.echo(f"{event:14} {result.outcome:16} {result.setting}, {result.what}", err=True)
        if result.outcome in BAD:
            click.echo(f"{'':14} {'; '.join([*result.details, result.message])}", err=True)


def _heading(results: list[Result]) -> str:
    seeds = ", ".join(str(seed) for seed in sorted({result.seed for result in results}))
    return f"""# Chaos

`tools/chaos --write docs/chaos.md` wrote this page (version {__version__}, seed {seeds}). Each event disturbs a real
chain that grows from one layer to two, on one or two ranks with ZeRO 0 to 3. The chain is resumed until it ends and
then compared with an undisturbed chain of the same setting: weights, both moments, steps, progress and the export byte
by byte; loss, learning rate and last sample of every update. `tools/chaos --work DIR --only KIND:SEED:NUMBER` repeats
one event.

* **identical**: the chain ended like the undisturbed one.
* **healed**: the damage was reported or the file recreated; the result is identical.
* **refused**: exit code 2 and one line that names the file; after restoring it, the chain ends identically.
* **not read again**: the chain no longer needed the file; a command that needs it rejects it.
* **harmless**: nothing depends on the damaged file.
* **wrong blame**: refused, but the last line names another file.
* **stopped**: refused, although the file can be recreated or training does not need it.
* **not recoverable**: refused, and the restored run did not end identically.
* **UNDETECTED**: the result differs without any report.

Clock jumps use {clocks.how()}. Disturbances of a cluster fall on a chain of jobs that `tools/slurm_lab` runs on 2 to 4
nodes of one machine; the chain must finish without help.
"""
