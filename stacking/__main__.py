"""``python -m stacking`` and the command ``stacking``."""

from stacking.run.signals import exit_on_signals

exit_on_signals()

from stacking.cli.main import main  # noqa: E402 (signals are handled while it is imported)

if __name__ == "__main__":
    main()
