"""A hub on this machine: the five calls that make a repository and commit to it, as huggingface_hub sends them."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """What was asked of it.

    private: visibility by repository; files: of its commits; cards: what its validator was shown
    """

    url: str = ""
    token: str = "Bearer hf_good"
    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    cards: list[str] = field(default_factory=list)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON of a request."""
        repository = "/".join(path.split("/")[3:5])
        match method, re.sub(r"^/api/models/[^/]+/[^/]+", "/MODEL", path):
            case "POST", "/api/repos/create":
                return self._create(json.loads(body))
            case "GET", "/MODEL":
                return 200, {"id": repository, "private": self.private[repository]}
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
        return 200, {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.url}/{repository}/commit/{'0' * 40}",
                     "hookOutput": ""}


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub for the block."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            known = self.headers.get("Authorization") == hub.token
            status, said = hub.answer(self.command, self.path, body) if known else (401, {"error": "Invalid token"})
            content = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

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
