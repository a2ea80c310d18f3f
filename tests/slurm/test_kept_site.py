"""The settings of the last submission, kept in the run folder, are reused only if unaltered."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacking.errors import DamagedFile
from stacking.run.folder import RunFolder
from stacking.slurm import command
from stacking.slurm.site import Site
from stacking.storage.files import write_sealed_text


def settings(run: RunFolder, site: Path | None = None) -> Site:
    return command._site(command.SubmitRequest(run=run, recipe=None, mode=None, site=site))


def test_settings_are_kept_until_new_ones_are_given(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    assert settings(run) == Site()
    write_sealed_text(run.site, Site(hours=12.0).to_yaml())
    assert settings(run).hours == 12
    (tmp_path / "other.yaml").write_text("hours: 3\n")
    assert settings(run, tmp_path / "other.yaml").hours == 3


def test_a_flipped_bit_in_kept_settings_is_refused_by_name(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    write_sealed_text(run.site, Site(hours=12.0).to_yaml())
    run.site.write_text(run.site.read_text().replace("hours: 12.0", "hours: 22.0"))
    with pytest.raises(DamagedFile, match=r"run/site\.yaml: does not match its seal"):
        settings(run)
