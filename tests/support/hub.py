"""A hub on this machine: the calls by which huggingface_hub makes a repository, commits to it and downloads one."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "0" * 40


@dataclass
class Hub:
    """What it offers and what was asked of it.

    models:  folders by repository, to be downloaded
    private: visibility by repository; files: of its commits; cards: what its validator was shown
    given:   files that were asked for and are there, REPOSITORY/FILE
    """

    url: str = ""
    models: dict[str, Path] = field(default_factory=dict)
    token: str = "Bearer hf_good"
    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    cards: list[str] = field(default_factory=list)
    given: list[str] = field(default_factory=list)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON of a request."""
        repository = "/".join(path.split("/")[3:5])
        match method, re.sub(r"^/api/models/[^/]+/[^/]+", "/MODEL", path):
            case "POST", "/api/repos/create":
                return self._create(json.loads(body))
            case "GET", "/MODEL/revision/main":
                return 200, {"id": repository, "sha": COMMIT}
            case "GET", listing if listing.startswith(f"/MODEL/tree/{COMMIT}"):
                return 200, _tree(self.models[repository])
            case "GET", "/MODEL" if repository in self.private.keys() | self.models.keys():
                return 200, {"id": repository, "sha": COMMIT, "private": self.private.get(repository, False)}
            case "POST", "/api/validate-yaml":
                self.cards.append(json.loads(body)["content"])
                return 200, {"errors": [], "warnings": []}
            case "POST", "/MODEL/preupload/main":
                return 200, {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                                       for file in json.loads(body)["files"]]}
            case "POST", "/MODEL/commit/main":
                return self._commit(repository, [json.loads(line) for line in body.splitlines()])
        return 404, {"error": f"{method} {path} is not played here"}

    def _create(self, wish: dict[str, Any]) -> tuple[int, Any]:
        name = f"{wish['organization']}/{wish['name']}"
        if name in self.private:
            return 409, {"url": f"{self.url}/{name}", "error": "You already created this model repo"}
        self.private[name] = wish["visibility"] == "private"
        return 200, {"url": f"{self.url}/{name}"}

    def _commit(self, repository: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        files = {line["value"]["path"]: base64.b64decode(line["value"]["content"])
                 for line in lines if line["key"] == "file"}
        self.files[repository] = files
        return 200, {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.url}/{repository}/commit/{COMMIT}",
                     "hookOutput": ""}


def _tree(folder: Path) -> list[dict[str, Any]]:
    """All files of a repository."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [{"type": "file", "path": str(path.relative_to(folder)), "size": path.stat().st_size, "oid": COMMIT}
            for path in files]


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub for the block."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            owner, name, resolve, _, *path = self.path.strip("/").split("/") + [""] * 4
            if resolve == "resolve":
                folder = hub.models.get(f"{owner}/{name}")
                file = folder and folder.joinpath(*path)
                if file is None or not file.is_file():
                    error = "EntryNotFound" if folder else "RepoNotFound"
                    self._send(404, b"", {"X-Error-Code": error, "X-Repo-Commit": COMMIT})
                    return
                hub.given.append(f"{owner}/{name}/{'/'.join(filter(None, path))}")
                self._send(200, file.read_bytes(), {"ETag": f'"{file.stat().st_ino}"', "X-Repo-Commit": COMMIT})
            else:
                self.do_POST()

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            known = self.headers.get("Authorization") == hub.token
            status, said = hub.answer(self.command, self.path, body) if known else (401, {"error": "Invalid token"})
            self._send(status, json.dumps(said).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for header in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(*header)
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else content)

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def found(home: Path) -> Iterator[Hub]:
    """A hub that the client finds and has a token for, for the block, with its cache in `home`."""
    with serving() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_good")
        constants = "huggingface_hub.constants"
        patch.setattr(f"{constants}.HF_TOKEN_PATH", str(home / "no token"))
        patch.setattr(f"{constants}.HF_HUB_CACHE", str(home / "cache"))
        patch.setattr(f"{constants}.ENDPOINT", hub.url)
        files = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", files)
        patch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)  # of the functions that are no one's methods
        yield hub
