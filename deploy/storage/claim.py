"""Who writes a run in a storage: one process at a time, as far as a store of objects can tell.

    claim.json    owner, host, process, and a count that grows every few seconds while its process lives

Two that begin at the same time are told apart where the store creates an object for one of them alone (Amazon S3,
Google, most others). A process that was cut off from the storage for long may find that another has taken the run over
meanwhile: it writes no more from the moment it sees that, but it may have a write in the air.

Consumes a `Remote`; waits for the silence of a claim whose process cannot be asked, at most `SILENCE` seconds.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddpo.errors import DdpoError, InputError
from deploy.storage.remote import Remote

FILE = "claim.json"
BEAT, SILENCE = 10.0, 60.0  # seconds


class Taken(DdpoError):
    """Another process writes the run now."""


class Claim:
    """Held for a block, by a thread of its own, since an upload may take long."""

    def __init__(self, remote: Remote) -> None:
        self.remote, self.taken = remote, ""
        self.mine: dict[str, Any] = {
            "owner": uuid.uuid4().hex, "host": socket.gethostname(), "process": os.getpid(), "space": _space(),
            "count": 0,
        }
        self.leaving = threading.Event()
        self.thread = threading.Thread(target=self._hold, name="claim", daemon=True)

    def __enter__(self) -> Claim:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.leaving.set()
        self.thread.join(BEAT)

    def check(self) -> None:
        """Raise Taken where another process has taken the run over."""
        if self.taken:
            raise Taken(self.taken)

    def take(self) -> None:
        """Make it this process's, before the block; raises InputError where it is that of another that lives."""
        while not self.remote.create(FILE, self._text()):
            theirs = self._read()
            if theirs is None:
                continue
            if theirs["owner"] == self.mine["owner"]:  # the answer was lost on the way, and the client tried again
                return
            if not _dead(theirs):
                self._watch(theirs)
            self.remote.write(FILE, self._text())
            return

    def _watch(self, theirs: dict[str, Any]) -> None:
        """Return when the claim has been silent for long; raises InputError when it is not."""
        who, end = _name(theirs), time.monotonic() + SILENCE
        print(f"{self.remote.uri}: {who} wrote here last and did not say that it had ended; whether it lives is known "
              f"within {SILENCE:.0f} s.", file=sys.stderr, flush=True)
        while time.monotonic() < end:
            now = self._read()
            if now is None:
                return
            if now != theirs:
                raise InputError(
                    f"{_name(now)} is training in {self.remote.uri}; two in one folder would write over each other's "
                    "steps. Wait for it or stop it, or give this run another name=..."
                )
            time.sleep(BEAT / 2)

    def _hold(self) -> None:
        while not self.leaving.wait(BEAT) and not self.taken:
            with suppress(Exception):  # the storage is away: the next beat tries again
                self._beat()
        if not self.taken:
            with suppress(Exception):
                self.remote.remove([FILE])

    def _beat(self) -> None:
        theirs = self._read()
        if theirs is not None and theirs["owner"] != self.mine["owner"]:
            self.taken = f"{_name(theirs)} has taken the run over"
            return
        self.mine["count"] += 1
        self.remote.write(FILE, self._text())

    def _text(self) -> bytes:
        return json.dumps(self.mine).encode()

    def _read(self) -> dict[str, Any] | None:
        content = self.remote.read(FILE)
        return None if content is None else {"owner": "", "host": "?", "process": 0, "space": "", **json.loads(content)}


def _name(claim: dict[str, Any]) -> str:
    return f"process {claim['process']} on {claim['host']}"


def _dead(claim: dict[str, Any]) -> bool:
    """Whether the process can be asked from here and is no more; a container has the processes to itself."""
    if not claim["space"] or claim["space"] != _space():
        return False
    return not Path(f"/proc/{claim['process']}").exists()


def _space() -> str:
    """The space of process numbers: this boot of this machine, or of a container on it. "" where it has no name."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
