"""What a person at a terminal sees and leaves: answers, run folders, process groups."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import tomlkit


@dataclass(frozen=True)
class Answer:
    """What a user sees of one command."""

    code: int
    out: str
    err: str


def write_run(path: Path, table: dict[str, Any]) -> Path:
    path.write_text(tomlkit.dumps(table))
    return path


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def leftovers(folder: Path) -> list[Path]:
    """What a write that did not end left behind."""
    return [path for path in folder.rglob("*") if "partial" in path.name]


class Started:
    """A command as a terminal starts it: a process group of its own, recognised by a mark in its environment."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        self.mark, self.log = uuid.uuid4().hex, folder / "terminal.txt"
        environment = {**os.environ, "DDPO_TEST_MARK": self.mark}
        for name in ("RAY_ADDRESS", "PYTHONWARNINGS"):
            environment.pop(name, None)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deploy", *words], cwd=folder, env=environment, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )

    def signal(self, number: int = signal.SIGINT) -> None:
        """What the terminal does on Ctrl-C: to the whole group."""
        os.killpg(self.process.pid, number)

    def terminal(self) -> str:
        return self.log.read_text()

    def left(self) -> list[psutil.Process]:
        """Every process that was started by the command, wherever in the system it is now."""
        return [process for process in psutil.process_iter() if self._ours(process)]

    def _ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("DDPO_TEST_MARK") == self.mark and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False
