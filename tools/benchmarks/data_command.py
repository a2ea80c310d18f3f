"""`tools/bench_data`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stacking.cli.main import run_command
from stacking.cli.options import FOLDER
from stacking.hardware.cores import usable_cores

if TYPE_CHECKING:
    from tools.benchmarks.data import DataBench


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("inputs", nargs=-1)
@click.option("--data", type=FOLDER, help="Draw from this prepared folder, and use its tokenizer.")
@click.option(
    "--characters", type=click.IntRange(min=1), default=4_000_000, show_default=True, help="Text to tokenize."
)
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
def bench_data(inputs: tuple[str, ...], data: Path | None, characters: int, repeats: int, as_json: bool) -> None:
    """Measure how fast text is prepared and sampled.

    Compares `prepare` with the bare tokenizer, on one core. Without INPUTS the text is the documentation that comes
    with Python and its packages.
    """
    from tools.benchmarks.data import bench_data as measure

    with tempfile.TemporaryDirectory(prefix="stacking-bench-") as scratch:
        measured = measure(inputs, data, characters, repeats, Path(scratch))
    click.echo(as_document(measured) if as_json else as_tables(measured))


def as_document(bench: DataBench) -> str:
    """The figures as JSON, with what they were measured on."""
    import platform
    from dataclasses import asdict
    from importlib.metadata import version

    packages = {name: version(name) for name in ("numpy", "tokenizers", "datasets")}
    machine = {"processor": platform.machine(), "cores": usable_cores(), "python": platform.python_version()}
    return json.dumps({"format": 1, "kind": "bench-data", "hardware": machine | packages, **asdict(bench)}, indent=2)


def as_tables(bench: DataBench) -> str:
    """The figures for a reader."""
    lines = [f"{bench.characters:,} characters in {bench.documents:,} documents, on one core", ""]
    lines.append(f"{'':18} {'characters/s':>14} {'tokens/s':>12} {'time':>6}")
    for row in bench.tokenizing:
        speeds = f"{row.characters_per_second:14,.0f} {row.tokens_per_second:12,.0f}"
        lines.append(f"{row.name:18} {speeds} {row.time_against_tokenizer:5.2f}×")
    lines += ["", f"corpus of {bench.corpus_tokens:,} tokens opened in {1000 * bench.opening_seconds:.1f} ms", ""]
    lines.append(f"{'drawing':14} {'length':>6} {'batch':>6} {'real tokens/s':>14} {'each alone':>12} {'padding':>8}")
    for draw in bench.drawing:
        place = f"{draw.kind:14} {draw.sequence_length:6} {draw.batch:6}"
        lines.append(
            f"{place} {draw.tokens_per_second:14,.0f} {draw.tokens_per_second_alone:12,.0f} {draw.padding:8.0%}"
        )
    lines += ["", f"{'index':14} {'length':>6} {'samples':>12} {'seconds':>8} {'bytes/token':>12}"]
    for index in bench.indexing:
        per_token = index.bytes / bench.corpus_tokens
        place = f"{index.kind:14} {index.sequence_length:6} {index.samples:12,}"
        lines.append(f"{place} {index.seconds:8.2f} {per_token:12.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(bench_data)
