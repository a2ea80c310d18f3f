"""Defines the commands on checkpoints and states: `consolidate`, `grow`, `export`, `import`, `evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stacking.cli.options import ALLOW_NON_FINITE, COMMAND, FOLDER, source_list
from stacking.errors import UserError, printable


@click.command(**COMMAND)
@click.argument("checkpoint", type=FOLDER)
@click.option("--config", type=FOLDER, help="For checkpoints of other programs: the Hugging Face config, or a recipe.")
@click.option("--out", type=FOLDER, required=True, help="The state folder to write.")
@ALLOW_NON_FINITE
def consolidate(checkpoint: Path, config: Path | None, out: Path, allow_non_finite: bool) -> None:
    """Merge a ZeRO checkpoint into one unsharded state.

    CHECKPOINT may be of any ZeRO stage and world size. No GPU is needed.
    """
    from functools import partial

    from stacking.planning.describe import described
    from stacking.state.consolidate import consolidate as consolidate_checkpoint
    from stacking.storage.files import require_absent
    from stacking.terminal.progress_bar import bar

    require_absent(out)
    with bar("consolidating") as update:
        describe = partial(described, config) if config else None
        consolidate_checkpoint(checkpoint, out, update, describe, allow_non_finite)


@click.command(**COMMAND)
@click.argument("state", type=FOLDER)
@click.option("--layers", type=click.IntRange(min=1), help="Depth of the grown model.")
@click.option("--operator", default="stack", show_default=True, help="How --layers is reached: see docs/growth.md.")
@click.option("--layers-from", metavar="N,N,...", help="The source of each layer instead: 0,1,2,1,2,3 or 0,1,1 silent.")
@click.option("--optimizer-state", default="reset", show_default=True, help="What to do with Adam's moments and steps.")
@click.option("--share", is_flag=True, help="Hard-link the files of STATE instead of copying them.")
@click.option("--out", type=FOLDER, required=True, help="The state folder to write.")
@ALLOW_NON_FINITE
def grow(
    state: Path,
    layers: int | None,
    operator: str,
    layers_from: str | None,
    optimizer_state: str,
    share: bool,
    out: Path,
    allow_non_finite: bool,
) -> None:
    """Grow a shallow state into a deeper one.

    STATE itself is not changed.
    """
    from stacking.growth.apply import grow as grow_state
    from stacking.storage.files import require_absent
    from stacking.terminal.progress_bar import bar

    listed = source_list(layers, layers_from)
    require_absent(out)
    with bar("growing") as update:
        grow_state(state, out, layers, operator, optimizer_state, update, share, allow_non_finite, listed)


@click.command(**COMMAND)
@click.argument("state", type=FOLDER)
@click.option("--step", type=click.IntRange(min=1), help="STATE is a run: export its checkpoint after this update.")
@click.option("--data", type=FOLDER, help="The prepared data, for its tokenizer.")
@click.option("--out", type=FOLDER, required=True, help="The Hugging Face folder to write.")
@click.option("--push-to-hub", metavar="OWNER/NAME", help="Also upload it to this model of the Hugging Face Hub.")
@click.option("--revision", help="The Hub's branch. Default: main; with --step STAGE-step-N, such as 1-L6-step-500.")
@click.option("--private", is_flag=True, help="Create the Hub's model as a private one.")
@ALLOW_NON_FINITE
def export(
    state: Path,
    step: int | None,
    data: Path | None,
    out: Path,
    push_to_hub: str | None,
    revision: str | None,
    private: bool,
    allow_non_finite: bool,
) -> None:
    """Export a state as a Hugging Face model.

    Writes config, safetensors, tokenizer and model card. With --step, STATE is a run, which may still be training;
    the step counts the updates of its current stage. --push-to-hub creates the model and the branch if they are
    missing.
    """
    from stacking.huggingface.export import export as export_state
    from stacking.huggingface.upload import MAIN, Destination, require_uploadable, upload
    from stacking.run.midway import export_checkpoint
    from stacking.storage.files import require_absent
    from stacking.terminal.progress_bar import bar

    require_absent(out)
    if push_to_hub is not None:
        require_uploadable(push_to_hub)
    elif revision is not None or private:
        raise UserError("--private" if private else "--revision", "has no effect here", "add --push-to-hub OWNER/NAME")
    if step is None:
        export_state(state, out, data, allow_non_finite)
        branch = MAIN
    else:
        with bar("exporting") as update:
            branch = export_checkpoint(state, step, out, data, allow_non_finite, update)
    if push_to_hub is not None:
        click.echo(f"uploaded: {upload(out, Destination(push_to_hub, revision or branch, private))}", err=True)


@click.command("import", **COMMAND)
@click.argument("model", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="The state folder to write.")
def import_model(model: Path, out: Path) -> None:
    """Import a Hugging Face BERT as a state.

    The state can be grown, or trained further.
    """
    from stacking.huggingface.importing import import_hugging_face
    from stacking.storage.files import require_absent

    require_absent(out)
    report = import_hugging_face(model, out)
    for note in report.notes:
        click.echo(f"note: {printable(note)}", err=True)
    for what, names in (("initialised", report.initialised), ("ignored", report.ignored)):
        if names:
            click.echo(f"{what}: {printable(', '.join(names))}", err=True)


@click.command(**COMMAND)
@click.argument("state", type=FOLDER)
@click.option("--data", type=FOLDER, required=True, help="The prepared data.")
@click.option("--samples", type=click.IntRange(min=1), default=2048, show_default=True)
@click.option("--kind", default="segment-pair", show_default=True, help="As `data.samples` of a recipe.")
@click.option("--sequence-length", type=click.IntRange(min=8), default=128, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the scores as JSON.")
def evaluate(state: Path, data: Path, samples: int, kind: str, sequence_length: int, seed: int, as_json: bool) -> None:
    """Score a state on held-out data."""
    from stacking.evaluate.mlm import evaluate_state

    scores = evaluate_state(state, data, samples, seed, kind, sequence_length)._asdict()
    click.echo(json.dumps(scores) if as_json else "\n".join(f"{name:14} {value:.4f}" for name, value in scores.items()))
