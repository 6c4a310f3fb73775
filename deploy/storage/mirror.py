"""Keeps a run folder in a storage while the run goes on: one thread looks at the folder and uploads what is new.

    URI/NAME/
        as in the run folder
        contents.json    size and sha256 of every file above, written last       claim.json    see deploy.storage.claim

What stands on another file is looked at before it and uploaded after it, so that at no time the storage has a
checkpoint without its lines, or a line without its policy. A failure of the storage does not stop the run: it is told,
and tried again after growing pauses.

Consumes the folder that `RunFolder` writes, produces the folder in the storage; nobody waits for it before the end, and
then for `PATIENCE` seconds.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from deploy.folder import RunFolder, write
from deploy.storage.claim import Claim, Taken
from deploy.storage.remote import Remote
from learner.checkpoint import BEST, MANIFEST, steps, sum_of

CONTENTS, FORMAT = "contents.json", "ddpo-run/1"
OFTEN = 10.0  # seconds between looks
REST = 10  # times as long as the last look took, unless a checkpoint came or went: what has grown is uploaded anew
PAUSES = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)  # seconds, after failures in a row; the last is kept to
PATIENCE = 300.0  # seconds at the end; another Ctrl-C ends it
# In the order of looking. Checkpoints before the lines that they stand on, lines before the policies that they name.
LOOKED_AT = (
    "report.html", "result.json", "checkpoints/[0-9]*/manifest.json", "checkpoints/[0-9]*/**/*", "metrics.jsonl",
    "ledger.jsonl", "**/*",
)
LARGE = ("checkpoints", "policies")  # are uploaded from the disk, being large, and never written twice
LEFT_OUT = ("wandb", CONTENTS)  # W&B has a way of its own


class Piece(NamedTuple):
    """A file as it was when it was looked at."""

    size: int
    sha256: str
    source: Path | bytes


class Mirror:
    """Uploads during a block, and at its end what is left."""

    def __init__(self, folder: RunFolder, remote: Remote, claim: Claim) -> None:
        self.folder, self.remote, self.claim = folder, remote, claim
        self.there: dict[str, str] = {}  # the sha256 of what is in the storage, by name; "" where it is not known
        self.seen: dict[str, tuple[tuple[int, ...], int, str]] = {}  # mark, size, sha256
        self.step = newest(folder)
        self.leaving, self.over = threading.Event(), threading.Event()
        self.failed, self.problem, self.listed = 0, "", False
        self.thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def __enter__(self) -> Mirror:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.leaving.set()
        try:
            self.thread.join(2.0)
            if self.thread.is_alive():
                _tell(f"Keeping what is left in {self.remote.uri}, for at most {PATIENCE:.0f} s ...")
                self.thread.join(PATIENCE)
        finally:
            self.over.set()
            _tell(self._end())

    def _end(self) -> str:
        if not self.thread.is_alive() and not self.problem:
            return f"Kept in {self.remote.uri}" if CONTENTS in self.there else "Nothing was kept, before the first step"
        known = {name: facts for name, facts in self.seen.items() if (self.folder.path / name).exists()}
        found = [size for name, (_, size, sha256) in known.items() if self.there.get(name) != sha256]
        return (
            f"Note: {len(found)} files ({sum(found) / 1e6:.1f} MB) are not in {self.remote.uri} "
            f"({self.problem or 'it took too long'}), only in {self.folder.path} on this machine; --resume goes on "
            "from them here, and brings them there."
        )

    def _work(self) -> None:
        """The thread: until the block has ended and all is there, nobody waits any more, or the run is another's."""
        while not self.over.is_set():
            last = self.leaving.is_set()
            start, found = time.monotonic(), steps(self.folder.checkpoints)
            try:
                self._tried()
            except Taken as error:
                self.problem = str(error)
                _tell(f"Note: {self.remote.uri}: {error}. This run goes on, but is no longer kept there.")
                return
            if self.failed:
                (self.over if last else self.leaving).wait(PAUSES[min(self.failed, len(PAUSES)) - 1])
            elif last:
                return
            else:
                self._rest(time.monotonic() - start, found)

    def _rest(self, took: float, found: list[Path]) -> None:
        """Until the next look is due; nobody could go on from lines without a new checkpoint."""
        end = time.monotonic() + REST * took
        while not self.leaving.wait(OFTEN) and time.monotonic() < end and steps(self.folder.checkpoints) == found:
            pass

    def _tried(self) -> None:
        """One look and its uploads; what fails is told once, from the second time on: the first may be a checkpoint
        that was pruned while it was read."""
        try:
            self._look()
        except Taken:
            raise
        except Exception as error:  # of the storage's client, each of which has its own
            self.failed, self.problem = self.failed + 1, f"{type(error).__name__}: {error}"
            if self.failed == 2:
                _tell(f"Note: {self.remote.uri} cannot be written ({self.problem}). The run goes on, kept in "
                      f"{self.folder.path} on this machine; it is tried again and again.")
            return
        if self.failed > 1:
            _tell(f"{self.remote.uri} can be written again, and has all there is.")
        self.failed, self.problem = 0, ""

    def _look(self) -> None:
        if not self.folder.metrics_file.exists():  # before the first step there is nothing that a run could go on from
            return
        if not self.listed:
            self._know()
        pieces = self._all()
        step = newest(self.folder)
        if step < self.step or "result.json" in self.there.keys() - pieces.keys():
            pieces = self._reopen(back=step < self.step)
        self.step = step
        for name, piece in pieces.items():
            self._put(name, piece)
        self._sum_up(pieces)
        for name in self.there.keys() - pieces.keys() - {CONTENTS}:
            self.remote.remove([name])
            del self.there[name]

    def _reopen(self, back: bool) -> dict[str, Piece]:
        """A run that had ended goes on, or it went back to an earlier checkpoint: first of all no reader may find what
        is no more. Where it went back, its lines follow the other way round: they are fewer than were stood on."""
        pieces = self._all()  # once more: the first look may have been before it and after it
        self._sum_up({name: piece for name, piece in pieces.items() if name in self.there})
        for name in ("metrics.jsonl", "ledger.jsonl") if back else ():
            self._put(name, pieces[name])
        return pieces

    def _sum_up(self, pieces: dict[str, Piece]) -> None:
        """Write contents.json there, and here, by which `bring` knows that nobody else wrote since."""
        contents = contents_of(pieces, self.folder)
        self._put(CONTENTS, _small(contents))
        write(self.folder.path / CONTENTS, contents)

    def _know(self) -> None:
        """What is in the storage already: what contents.json names, and what a driver that was killed left."""
        recorded = self.folder.path / CONTENTS
        files = json.loads(recorded.read_text())["files"] if recorded.exists() else {}
        for name in self.remote.files():
            if name not in ("claim.json", "claim.json.partial"):
                self.there[name] = files.get(name, {}).get("sha256", "")
        self.listed = True

    def _put(self, name: str, piece: Piece) -> None:
        if self.there.get(name) != piece.sha256:
            self.claim.check()
            self.there[name] = ""
            self.remote.write(name, piece.source)
            self.there[name] = piece.sha256

    def _all(self) -> dict[str, Piece]:
        """Every file, in the order of uploading; raises FileNotFoundError where a checkpoint is just being pruned."""
        pieces = dict(reversed(list(self._pieces())))
        for name in [name for name in pieces if name.startswith("checkpoints/") and name.endswith(MANIFEST)]:
            parts = json.loads((self.folder.path / name).read_text())
            if not pieces.keys() >= {name.replace(MANIFEST, part) for part in parts}:
                raise FileNotFoundError(name)
        return pieces

    def _pieces(self) -> Iterator[tuple[str, Piece]]:
        """Every file, in the order of looking."""
        told = set()
        for pattern in LOOKED_AT:
            for path in sorted(self.folder.path.glob(pattern)):
                name = path.relative_to(self.folder.path).as_posix()
                if name not in told and path.is_file() and not _left_out(name):
                    told.add(name)
                    yield name, self._piece(name, path)

    def _piece(self, name: str, path: Path) -> Piece:
        """The file as it is; small ones are read, since they may be another by the time they are uploaded."""
        facts = path.stat()
        mark = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
        before, size, sha256 = self.seen.get(name, ((), 0, ""))
        large = name.startswith(LARGE)
        if before == mark and (large or self.there.get(name) == sha256):
            return Piece(size, sha256, path)
        piece = Piece(facts.st_size, sum_of(path), path) if large else _small(path.read_bytes())
        self.seen[name] = mark, piece.size, piece.sha256
        return piece


def newest(folder: RunFolder) -> int:
    """The newest step in metrics.jsonl."""
    return next((row["step"] for row in deque(folder.rows(), maxlen=1)), 0)


def _left_out(name: str) -> bool:
    parts = name.split("/")
    return parts[0] in LEFT_OUT or any(part.startswith(".") for part in parts)


def _small(content: bytes) -> Piece:
    return Piece(len(content), hashlib.sha256(content).hexdigest(), content)


def contents_of(pieces: dict[str, Piece], folder: RunFolder) -> bytes:
    """contents.json."""
    link = folder.checkpoints / BEST
    best = link.readlink().name if link.is_symlink() else ""
    record: dict[str, Any] = {
        "format": FORMAT, BEST: best if f"checkpoints/{best}/{MANIFEST}" in pieces else None,
        "files": {name: {"size": piece.size, "sha256": piece.sha256} for name, piece in sorted(pieces.items())},
    }
    return json.dumps(record, indent=1).encode()


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
