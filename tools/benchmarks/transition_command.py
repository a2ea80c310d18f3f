"""`tools/bench_transition`."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import click

from stacking.cli.main import run_command
from stacking.cli.options import FOLDER

_SHAPES = ("tiny", "14M", "110M", "340M", "1.3B")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--shape", "shapes", multiple=True, type=click.Choice(_SHAPES), help="May be repeated; default: 110M.")
@click.option("--ranks", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--zero-stage", type=click.IntRange(1, 3), default=2, show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16"]), default="bf16", show_default=True)
@click.option("--optimizer-state", default="copy-keep-step", show_default=True, help="As `stacking grow` takes it.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="The contenders take turns.")
@click.option("--cache", type=click.Choice(["warm", "cold"]), default="warm", show_default=True, help="The page cache.")
@click.option("--deepspeed/--no-deepspeed", default=True, help="Whether to measure its two converters, too.")
@click.option("--folder", type=FOLDER, help="On the disk to measure. Default: a temporary one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench_transition(
    shapes: tuple[str, ...],
    ranks: int,
    zero_stage: int,
    precision: str,
    optimizer_state: str,
    repeats: int,
    cache: str,
    deepspeed: bool,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Measure how long a transition between stages takes.

    From one stage's last step to the first of the next, compared with cp and DeepSpeed's converters.
    """
    from stacking.errors import StackingError, UserError
    from stacking.growth.operators import OPTIMIZER_STATES
    from stacking.storage.files import require_empty
    from tools.benchmarks import transition_table
    from tools.benchmarks.transition import Wanted, results_of

    if optimizer_state not in OPTIMIZER_STATES:
        raise UserError("--optimizer-state", f"{optimizer_state!r} is not known", f"give {', '.join(OPTIMIZER_STATES)}")
    wanted = Wanted(
        ranks=ranks,
        zero_stage=zero_stage,
        precision=precision,
        optimizer_state=optimizer_state,
        repeats=repeats,
        cache=cache,
        deepspeed=deepspeed,
    )
    if folder is not None:
        require_empty(folder, "--folder")
    place = folder or Path(tempfile.mkdtemp(prefix="stacking-transition-"))
    try:
        results = list(results_of(shapes or ("110M",), place, wanted))
    except (KeyboardInterrupt, UserError):
        if folder is None:
            shutil.rmtree(place, ignore_errors=True)
        raise
    except StackingError as error:
        raise StackingError(f"{error} (what it left is in {place})") from error
    if folder is None:
        shutil.rmtree(place, ignore_errors=True)
    found = transition_table.as_json(results, wanted)
    click.echo(json.dumps(found, indent=2) if as_json else transition_table.as_text(results, wanted))


if __name__ == "__main__":
    run_command(bench_transition)
