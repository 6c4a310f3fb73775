"""Runs that are in a storage, by URI: brought to this machine to go on or to be read.

A run works in a folder of this machine as ever; mirror.py keeps that in the storage. The folder goes on from where
it is if nobody wrote the run since (its contents.json is the one in the storage); else it is made what the storage has.

Consumes URIs, produces folders under ~/.cache/ddpo; waits for the storage.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from ddpo.errors import InputError
from deploy.folder import RunFolder, choose, replaced, there_is, write
from deploy.storage.claim import Claim
from deploy.storage.mirror import CONTENTS, FORMAT, Mirror, newest
from deploy.storage.remote import Remote, is_uri, reachable
from learner import checkpoint

FIRST = ("report.html", "result.json", "metrics.jsonl", "ledger.jsonl")  # each may stand on what comes later
OURS = ("checkpoints", "policies", "images")
TRIES = 5  # to catch a run that goes on between two of its checkpoints


@contextmanager
def home(runs: str | Path, name: str, resume: str | None) -> Iterator[Path]:
    """Where `train` has its run folders during the block: as given or, for a URI, a folder here that holds the runs of
    this name, with the one that `train` will choose claimed, brought here and kept in the storage."""
    if not is_uri(runs):
        yield Path(runs)
        return
    root, local = str(runs).rstrip("/"), cache("runs", str(runs))
    with reachable(root):
        _outline(Remote(root), local, name)
        if resume not in (None, "auto") and not there_is(local, name):
            raise InputError(f"--resume: there is no run {name!r} in {root}. Start it without --resume first.")
        folder = choose(local, name, resume is not None and there_is(local, name))
        remote = Remote(root).child(folder.path.name)
        claim = Claim(remote)
        claim.take()
    with claim:
        with reachable(root):
            bring(remote, folder.path)
        with Mirror(folder, remote, claim):
            yield local


def cache(use: str, uri: str) -> Path:
    """The folder on this machine for what is at the URI."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddpo" / use
    scheme, _, rest = uri.partition("://")
    return root / scheme / rest.strip("/")


def _outline(root: Remote, local: Path, name: str) -> None:
    """Have here, of every run of this name that is there, at least its config: enough to choose among them."""
    local.mkdir(parents=True, exist_ok=True)
    for found in root.folders():
        numbered = found.startswith(f"{name}-") and found.removeprefix(f"{name}-").isdigit()
        if found != name and not numbered:
            continue
        config = root.child(found).read("config.toml")
        if config is not None and not (local / found / "config.toml").exists():
            (local / found).mkdir(exist_ok=True)
            write(local / found / "config.toml", config)


def here(place: str | Path) -> Path:
    """A run folder or a checkpoint as given, or brought from the storage; raises InputError."""
    if not is_uri(place):
        return Path(place)
    uri = str(place).rstrip("/")
    with reachable(uri):
        for levels in (0, 2):  # a run, or a checkpoint of one
            run = uri.rsplit("/", levels)[0]
            content = Remote(run).read(CONTENTS)
            if content is not None:
                best = _checked(run, content)["best"] or checkpoint.BEST
                return _read(Remote(run), uri.removeprefix(run).strip("/").replace("/best", f"/{best}"))
    raise InputError(
        f"{uri} is neither a run nor a checkpoint of one: there is no {CONTENTS}, which a run has there once its first "
        "step is done."
    )


def _read(run: Remote, inner: str) -> Path:
    folder = cache("read", run.uri)
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of another reader, who is held to the storage's time limits
        bring(run, folder, inner)
    finally:
        os.close(lock)
    return (folder / inner).resolve()


def bring(run: Remote, folder: Path, inner: str = "") -> None:
    """Make the folder what the storage has of the run, or of `inner` in it; nothing to do where it has that already,
    or has gone on from it. Where there is no such run in the storage, the folder stays as it is."""
    for attempt in range(TRIES):
        content = run.read(CONTENTS)
        ours = folder / CONTENTS
        if content is None or (ours.exists() and ours.read_bytes() == content):
            return
        ours.unlink(missing_ok=True)
        try:
            _fetch(run, folder, _checked(run.uri, content), inner)
        except FileNotFoundError:  # pruned since contents.json was read
            if attempt == TRIES - 1:
                raise
            continue
        if not inner:
            write(ours, content)
        return


def _checked(uri: str, content: bytes) -> dict[str, Any]:
    """contents.json, if it is one, and names no file outside the folder."""
    try:
        record = json.loads(content)
        names = [*record["files"], f"checkpoints/{record['best'] or '0'}"]
        sound = record["format"] == FORMAT and not any(_outside(name) for name in names)
    except (ValueError, TypeError, KeyError):
        sound = False
    if not sound:
        raise InputError(f"{uri}/{CONTENTS} is not what this program writes ({FORMAT}), so what is there stays there.")
    return record


def _outside(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or not path.parts


def _fetch(run: Remote, folder: Path, record: dict[str, Any], inner: str) -> None:
    every: dict[str, Any] = record["files"]
    files = {name: facts for name, facts in every.items() if not inner or name.startswith(f"{inner}/")}
    missing = [name for name, facts in files.items() if not _same(folder / name, facts)]
    for name in [name for name in FIRST if name in missing]:  # growing: in the order in which none lacks another's
        run.fetch([name], folder)
    if rest := sorted(set(missing) - set(FIRST)):
        run.fetch(rest, folder)
    if not inner:
        _only(folder, files)
        _level(RunFolder(folder))
    _mark_best(folder / "checkpoints", record["best"])


def _same(path: Path, facts: dict[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == facts["size"] and checkpoint.sum_of(path) == facts["sha256"]


def _only(folder: Path, files: dict[str, Any]) -> None:
    """Take away what the storage does not have; evaluations, and what else was put here besides, stay."""
    for path in [*folder.glob("*"), *(path for name in OURS for path in (folder / name).rglob("*"))]:
        if path.is_file() and path.relative_to(folder).as_posix() not in files:
            path.unlink()


def _level(folder: RunFolder) -> None:
    """Take away what stands on steps that metrics.jsonl does not have: lines of the ledger, which is uploaded before
    it, and checkpoints, where a run that had gone back to an earlier one was killed before contents.json said so."""
    last = newest(folder)
    for path in folder.checkpoints.glob("[0-9]*"):
        if int(path.name) > last or not any(path.iterdir()):
            shutil.rmtree(path)
    if folder.ledger_file.exists() and not folder.result_file.exists():
        with folder.ledger_file.open("rb") as lines, replaced(folder.ledger_file) as kept:
            kept.writelines(line for line in lines if _step(line) <= last)


def _step(line: bytes) -> int:
    """Of a line of the ledger; 0 of a damaged one, which is for the audit to find."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return 0


def _mark_best(checkpoints: Path, best: str | None) -> None:
    link = checkpoints / checkpoint.BEST
    link.unlink(missing_ok=True)
    if best and checkpoints.is_dir():
        link.symlink_to(best)
