"""Defines the command line. Each command imports its dependencies when it runs, so that all of them start fast."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import click

from stacking import __version__
from stacking.cli.attention import attention
from stacking.cli.bench import bench
from stacking.cli.compare import compare
from stacking.cli.doctor import doctor
from stacking.cli.expand import expand
from stacking.cli.glue import glue
from stacking.cli.jobs import cancel, submit
from stacking.cli.options import COMMAND
from stacking.cli.planning import adopt, plan
from stacking.cli.prepare import prepare
from stacking.cli.runs import baseline, report, resume, run, status
from stacking.cli.states import consolidate, evaluate, export, grow, import_model
from stacking.cli.tune import tune
from stacking.errors import StackingError, UserError
from stacking.run.signals import Stopped, exit_code, exit_on_signals, ignore_signals, raise_on_signals, received
from stacking.storage.os_errors import explained
from stacking.terminal.lenient import lenient


@click.group(**COMMAND)
@click.version_option(__version__)
@click.option("-v", "--verbose", is_flag=True, help="Explain decisions, retries and SLURM queries on stderr.")
def cli(verbose: bool) -> None:
    """Pre-train BERT by progressive stacking, with DeepSpeed."""
    logging.getLogger("stacking").setLevel(logging.DEBUG if verbose else logging.WARNING)
    if verbose:
        logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")


COMMANDS = (
    prepare,
    plan,
    adopt,
    run,
    resume,
    submit,
    cancel,
    status,
    consolidate,
    grow,
    export,
    import_model,
    evaluate,
    attention,
    glue,
    report,
    baseline,
    compare,
    expand,
    bench,
    doctor,
    tune,
)
for command in COMMANDS:
    cli.add_command(command)


def main() -> NoReturn:
    """Runs the command `stacking` and exits."""
    run_command(cli)


def run_command(command: click.Command) -> NoReturn:
    """Runs a command and exits; a user error prints one line on stderr and exits with 2."""
    sys.stderr = lenient(sys.stderr)
    try:
        raise_on_signals()
        code = _exit_code_of(lambda: command.main(standalone_mode=False))
    except BaseException:  # `Stopped`, or what a library made of it: pydantic raises a SchemaError instead
        if not received:
            raise
        exit_on_signals()
        click.echo(f"stacking: {Stopped(received[0])}", err=True)
        code = exit_code(received[0])
    ignore_signals()
    sys.exit(code)


def _exit_code_of(command: Callable[[], Any]) -> int:
    try:
        code = command()
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = UserError.exit_code
    except click.ClickException as error:
        click.echo(f"stacking: {' '.join(error.format_message().split())}", err=True)
        code = UserError.exit_code
    except StackingError as error:
        click.echo(f"stacking: {error}", err=True)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = exit_code(signal.SIGINT)
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        code = _refused(error)
    return code if isinstance(code, int) else 0


def _refused(error: OSError) -> int:
    """Reports an operating system error in one line; returns the exit code."""
    reason = error.strerror or str(error)
    if _is_of_output(error):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        ours: StackingError = UserError("standard output", reason, "check its destination")
    elif (found := explained(error, error.filename or "a file")) is not None:
        ours = found
    elif isinstance(error, FileNotFoundError):
        ours = UserError(error.filename or "a file", reason, "check the path")
    else:
        ours = StackingError(f"{error.filename or 'the operating system'}: {reason}")
    click.echo(f"stacking: {ours}", err=True)
    return ours.exit_code


def _is_of_output(error: OSError) -> bool:
    """Returns whether writing to standard output failed: in `click.echo`, or in the flush at exit."""
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    return error.filename is None and (click.echo.__code__ in frames or frames == [_exit_code_of.__code__])


if __name__ == "__main__":
    main()
