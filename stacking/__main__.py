"""Runs the command ``stacking``, also as ``python -m stacking``."""

from stacking.run.signals import exit_on_signals

exit_on_signals()

from stacking.cli.main import main  # noqa: E402 (signals are handled while it is imported)

if __name__ == "__main__":
    main()
