"""The launchers that a recipe can name."""

from __future__ import annotations

from stacking.launch.job import Launcher
from stacking.launch.local import Local

LAUNCHERS: dict[str, type[Launcher]] = {"local": Local}
