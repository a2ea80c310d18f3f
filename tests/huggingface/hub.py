"""A stand-in for the Hugging Face Hub: the part of its HTTP interface that uploading a folder calls, on this machine.

It is written from what `huggingface_hub` sends and reads, since tests cannot reach the Hub. It takes large files by the
LFS protocol, as servers without Xet do.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

OWNER, TOKEN = "me", "hf_stand_in"


class Hub(ThreadingHTTPServer):
    """Models, branches and files that it received, and how it should answer."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.models: dict[str, dict[str, dict[str, bytes]]] = {}
        """Maps models to branches to files."""
        self.private: set[str] = set()
        self.objects: dict[str, bytes] = {}
        """What came by LFS, by SHA-256."""
        self.refuse: dict[str, int] = {}
        """Maps a part of an address to the status with which it is refused."""

    def write(self, model: str, branch: str, folder: Path) -> Path:
        """Writes the files of a branch into a new folder."""
        folder.mkdir()
        for name, data in self.models[model][branch].items():
            (folder / name).write_bytes(data)
        return folder

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Returns the status and the JSON for a request."""
        parts = unquote(path).strip("/").split("/")
        match method, parts:
            case "POST", ["api", "repos", "create"]:
                return self._create(json.loads(body))
            case "POST", ["api", "validate-yaml"]:
                return 200, {"errors": [], "warnings": []}
            case "GET", ["api", "models", owner, name] if f"{owner}/{name}" in self.models:
                return 200, {"id": f"{owner}/{name}", "private": f"{owner}/{name}" in self.private}
            case "GET", ["api", "models", owner, name, "revision", branch] if branch in self.models[f"{owner}/{name}"]:
                return 200, {"id": f"{owner}/{name}"}
            case "POST", ["api", "models", owner, name, "branch", branch]:
                branches = self.models[f"{owner}/{name}"]
                status = 409 if branch in branches else 200
                branches.setdefault(branch, dict(branches["main"]))
                return status, {}
            case "POST", ["api", "models", _, _, "preupload", _]:
                return 200, {"files": [_mode(file["path"]) for file in json.loads(body)["files"]]}
            case "POST", [_, _, "info", "lfs", "objects", "batch"]:
                return 200, {"objects": [self._place(thing) for thing in json.loads(body)["objects"]]}
            case "PUT", ["lfs", oid]:
                self.objects[oid] = body
                return 200, {}
            case "POST", ["api", "models", owner, name, "commit", branch]:
                self._commit(self.models[f"{owner}/{name}"][branch], body)
                return 200, {"commitUrl": f"{self.url}/{owner}/{name}/commit/1", "commitOid": "1"}
        return 404, {"error": f"the stand-in has no {method} {path}"}

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        name = f"{wanted['organization'] or OWNER}/{wanted['name']}"
        status = 409 if name in self.models else 200
        if status == 200:
            self.models[name] = {"main": {}}
            if wanted.get("visibility") == "private" or wanted.get("private"):
                self.private.add(name)
        return status, {"url": f"{self.url}/{name}"}

    def _place(self, thing: dict[str, Any]) -> dict[str, Any]:
        return {**thing, "actions": {"upload": {"href": f"{self.url}/lfs/{thing['oid']}"}}}

    def _commit(self, files: dict[str, bytes], body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]


def _mode(path: str) -> dict[str, Any]:
    return {"path": path, "uploadMode": "lfs" if path.endswith(".safetensors") else "regular", "shouldIgnore": False}


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def _respond(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        refused = [status for part, status in self.server.refuse.items() if part in self.path]
        if refused:
            status, answer = refused[0], {"error": "not today"}
        elif "/lfs/" not in self.path and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            status, answer = 401, {"error": "Invalid credentials"}
        else:
            status, answer = self.server.answer(self.command, self.path, body)
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = _respond

    def log_message(self, *_: object) -> None:
        """Prints nothing."""


@contextmanager
def running() -> Iterator[Hub]:
    """Runs the stand-in for the duration of the block."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


def use(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets this process and those that it starts talk to ``hub``, ignoring the settings and token of this machine."""
    from huggingface_hub import constants

    values = {"ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False}
    for name, value in {**values, "HF_TOKEN_PATH": str(folder / "token")}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
