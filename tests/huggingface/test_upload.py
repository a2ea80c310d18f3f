"""`stacking export --push-to-hub`, against a stand-in for the Hub, which tests/huggingface/hub.py describes."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from stacking.cli.states import export
from stacking.errors import StackingError, UserError
from stacking.model.config import ModelConfig
from stacking.storage.files import verify_folder
from tests.huggingface.hub import Hub, running, use
from tests.states import SMALL, random_weights, write_state


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running() as hub:
        use(hub, tmp_path, monkeypatch)
        yield hub


@pytest.fixture
def state(tmp_path: Path) -> Path:
    config = ModelConfig(**SMALL)
    return write_state(tmp_path / "state", config, random_weights(config))


def push(state: Path, *options: str) -> str:
    """Exports next to ``state`` and uploads, in this process; returns what the command prints."""
    arguments = [str(state), "--out", str(state.parent / "out"), *options]
    return CliRunner().invoke(export, arguments, standalone_mode=False, catch_exceptions=False).output


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_upload_equals_the_export_and_can_be_loaded(state: Path, hub: Hub, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "stacking", "export", state, "--out", out, "--push-to-hub", "me/my-bert"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=True)
    assert f"uploaded: {hub.url}/me/my-bert/tree/main\n" in done.stderr
    assert hub.models["me/my-bert"]["main"] == files(out)
    assert len(hub.objects) == 1, "the weights come by LFS"
    arrived = hub.write("me/my-bert", "main", tmp_path / "arrived")
    verify_folder(arrived)
    here, there = map(transformers.BertForPreTraining.from_pretrained, (out, arrived))
    assert all(map(torch.equal, here.state_dict().values(), there.state_dict().values()))


def test_a_branch_is_created_and_main_is_unchanged(state: Path, hub: Hub, tmp_path: Path) -> None:
    push(state, "--push-to-hub", "my-bert", "--revision", "step-7", "--private")
    assert hub.private == {"me/my-bert"}
    assert hub.models["me/my-bert"] == {"main": {}, "step-7": files(tmp_path / "out")}
    (tmp_path / "out").rename(tmp_path / "first")
    push(state, "--push-to-hub", "my-bert", "--revision", "step-7", "--private")


@pytest.mark.parametrize(
    ("part", "status", "said"),
    [
        ("create", 401, r"my-bert: the Hub does not accept the token \(401: not today\); log in with `hf auth login`"),
        ("preupload", 403, r"the Hub does not let this token write there \(403: .*use a token with write access"),
        ("branch", 400, r"the Hub does not accept this name or --revision \(400: not today\); correct it: "),
        ("objects/batch", 413, r"my-bert: the upload failed \(HfHubHTTPError: not today\); "),
        ("/lfs/", 418, r"my-bert: the upload failed \(.*"),
    ],
)
def test_a_refusal_is_reported_in_one_line_and_the_export_is_kept(
    state: Path, hub: Hub, tmp_path: Path, part: str, status: int, said: str
) -> None:
    hub.refuse[part] = status
    with pytest.raises(StackingError, match=said) as caught:
        push(state, "--push-to-hub", "me/my-bert", "--revision", "x")
    assert caught.value.exit_code == (2 if status in (400, 401, 403) else 1)
    assert "\n" not in str(caught.value)
    assert f"{tmp_path}/out is complete, `hf upload me/my-bert {tmp_path}/out . --revision x`" in str(caught.value)
    verify_folder(tmp_path / "out")


def test_the_command_that_a_failure_names_uploads_the_export(state: Path, hub: Hub, tmp_path: Path) -> None:
    hub.refuse["objects/batch"] = 413
    with pytest.raises(StackingError) as caught:
        push(state, "--push-to-hub", "me/my-bert", "--revision", "step-7")
    hub.refuse.clear()
    command = str(caught.value).split("`")[1]
    subprocess.run(shlex.split(command), env=os.environ, check=True, capture_output=True)
    assert hub.models["me/my-bert"]["step-7"] == files(tmp_path / "out")


def test_an_unreachable_hub_is_a_failure(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as hub:
        use(hub, tmp_path, monkeypatch)
    with pytest.raises(StackingError, match=r"the upload failed \(Connect.*; .* is complete, `hf upload") as caught:
        push(state, "--push-to-hub", "me/my-bert")
    assert caught.value.exit_code == 1


def test_a_private_model_is_never_uploaded_to_a_public_one(state: Path, hub: Hub) -> None:
    hub.models["me/my-bert"] = {"main": {}}
    with pytest.raises(UserError, match=r"me/my-bert: is a public model; omit --private, or .*is complete"):
        push(state, "--push-to-hub", "me/my-bert", "--private")
    assert hub.models["me/my-bert"] == {"main": {}}


@pytest.mark.parametrize("name", ["a/b/c", "me/my bert", "me/..", ""])
def test_an_invalid_name_is_refused_before_anything_is_written(state: Path, hub: Hub, name: str) -> None:
    with pytest.raises(UserError, match=r"is not a name \(.*; write OWNER/NAME"):
        push(state, "--push-to-hub", name)
    assert not (state.parent / "out").exists()


def test_without_a_token_or_network_nothing_is_written(state: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="finds no token of the Hub; log in with `hf auth login`, or set HF_TOKEN"):
        push(state, "--push-to-hub", "me/my-bert")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE: is set, so nothing can be uploaded"):
        push(state, "--push-to-hub", "me/my-bert")
    assert not (state.parent / "out").exists()


@pytest.mark.parametrize("option", [("--revision", "x"), ("--private",)])
def test_upload_options_are_refused_without_an_upload(state: Path, option: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=f"{option[0]}: has no effect here; add --push-to-hub"):
        push(state, *option)
