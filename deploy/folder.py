"""The run folder: what a run leaves on disk, each file whole or not there.

    runs/NAME/
        config.toml     the resolved run             run.json       command, versions, machine
        metrics.jsonl   one object a step            ledger.jsonl   what became of every image, see deploy.ledger
        images/         grids of fixed prompts       checkpoints/   see learner.checkpoint
        policies/       see deploy.policies
        report.html     for a person                 result.json    for a program, at the end
        stacks.txt      see deploy.watchdog; only where nothing moved for a while
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import tomlkit

from ddpo.config import Run, plain
from ddpo.errors import DdpoError, InputError
from deploy.interrupt import undisturbed
from learner.checkpoint import BEST


class RunFolder:
    """Paths and writes; every failed write says which file and why."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images, self.checkpoints, self.policies = path / "images", path / "checkpoints", path / "policies"
        self.metrics_file, self.ledger_file = path / "metrics.jsonl", path / "ledger.jsonl"
        self.config_file, self.result_file = path / "config.toml", path / "result.json"
        self.stacks_file = path / "stacks.txt"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Make the folder and keep other processes out of it for the block; where it is new and the block fails before
        the first step is done, take it away again. Raises InputError where it cannot be written or is taken.

        The lock goes with the process, however that ends.
        """
        new = not self.path.exists()
        with self._writable():
            self.path.mkdir(parents=True, exist_ok=True)
            folder = os.open(self.path, os.O_RDONLY)
        try:
            _lock(folder, self.path)
            with self._only_if_used(new):
                yield
        finally:
            os.close(folder)

    @contextmanager
    def _only_if_used(self, new: bool) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if new and not self.metrics_file.exists():
                with undisturbed():
                    shutil.rmtree(self.path, ignore_errors=True)
            raise

    def create(self, run: Run, facts: dict[str, Any]) -> None:
        """Write what is known before the start; raises InputError where it cannot be written."""
        with self._writable():
            for folder in (self.images, self.checkpoints):
                folder.mkdir(exist_ok=True)
            write(self.config_file, tomlkit.dumps(plain(run)))
            write(self.path / "run.json", json.dumps(facts, indent=1))

    def add_facts(self, facts: dict[str, Any]) -> None:
        """Write what is known only once the workers are up."""
        path = self.path / "run.json"
        with guarded(path):
            write(path, json.dumps(json.loads(path.read_text()) | facts, indent=1))

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"the run folder {self.path} cannot be written ({error.strerror}): nothing the run learns could be "
                "kept. Free space there, or give another place with --runs FOLDER."
            ) from error

    def append(self, file: Path, records: Iterable[dict[str, Any]]) -> None:
        """Add lines of JSON, wholly or not at all; NaN is an error, since no reader of JSON takes it."""
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records).encode()
        with guarded(file), file.open("ab", buffering=0) as stream:
            size = stream.tell()
            try:
                _write_all(stream, lines)
            except OSError:
                os.truncate(file, size)
                raise

    def metrics(self) -> list[dict[str, Any]]:
        """All steps logged so far; a last line that a crash cut short is left out."""
        return list(self.rows())

    def rows(self) -> Iterator[dict[str, Any]]:
        """The same, one at a time."""
        return (record for _, record in _whole(self.metrics_file))

    def sync(self) -> None:
        """Have the lines on the disk before a checkpoint that stands on them, should the whole machine fail."""
        for file in (self.metrics_file, self.ledger_file):
            with file.open("rb") as stream:
                os.fsync(stream.fileno())

    def cut_to(self, step: int) -> None:
        """Forget what came after `step`, because it is about to be done again.

        Checkpoints go before the lines that they stand on: killed anywhere in here, a run goes on from a checkpoint
        that has all its lines.
        """
        self.result_file.unlink(missing_ok=True)
        for leftover in [*self.path.rglob(".*.partial"), *self.checkpoints.glob(".partial-*")]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        self._cut_checkpoints(step)
        for file in filter(Path.exists, (self.metrics_file, self.ledger_file)):
            with replaced(file) as kept:
                kept.writelines(line for line, record in _whole(file) if record["step"] <= step)
        for policy in self.policies.glob("[0-9]*"):
            if int(policy.name[:6]) > step:
                policy.unlink()
        for grid in self.images.glob("[0-9]*.png"):
            if int(grid.stem) > step:
                grid.unlink()

    def _cut_checkpoints(self, step: int) -> None:
        """Remove those after `step`, newest first, each at once; and `best`, where it is one of them."""
        found = [path for path in self.checkpoints.glob("[0-9]*") if path.name.isdigit() and int(path.name) > step]
        for later in sorted(found, key=lambda path: int(path.name), reverse=True):
            shutil.rmtree(later.rename(later.with_name(f".partial-{later.name}")))
        best = self.checkpoints / BEST
        if not best.exists():
            best.unlink(missing_ok=True)


def _lock(folder: int, path: Path) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"another process is training in {path}; two in one folder would write over each other's steps. Wait "
            "for it or stop it, or give this run another name=..."
        ) from None
    except OSError:
        return  # a file system without locks: as well as it goes


def _write_all(stream: Any, content: bytes) -> None:
    while content:
        content = content[stream.write(content) :]


def _whole(file: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Lines with what they say, up to one that a crash cut short; one at a time, since long runs have millions."""
    if not file.exists():
        return
    with file.open("rb") as stream:
        for line in stream:
            try:
                record = json.loads(line)
            except ValueError:
                return
            yield line.removesuffix(b"\n") + b"\n", record


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Turn a failed write into a message."""
    try:
        yield
    except OSError as error:
        raise DdpoError(
            f"cannot write {path}: {error.strerror or error}. The run stops here, because it could not keep what it "
            "learns; checkpoints already written are whole. Free space and use --resume."
        ) from error


def write(path: Path, content: str | bytes) -> None:
    """Replace a file in one go."""
    with replaced(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """What is written into it during the block replaces the file in one go: written beside it, then renamed, so that
    even a machine that fails leaves it whole."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def choose(root: Path, name: str, resume: bool) -> RunFolder:
    """The folder of a run: the newest of its name to resume, else one that is not there yet."""
    if resume:
        return RunFolder(_newest(root, name))
    path, number = root / name, 2
    while path.exists():
        path, number = root / f"{name}-{number}", number + 1
    return RunFolder(path)


def there_is(root: Path, name: str) -> bool:
    """Whether there is a run of this name to resume."""
    return bool(_of_name(root, name))


def _of_name(root: Path, name: str) -> list[Path]:
    numbered = [path for path in root.glob(f"{name}-*") if path.name.removeprefix(f"{name}-").isdigit()]
    return [path for path in [root / name, *numbered] if RunFolder(path).config_file.is_file()]


def _newest(root: Path, name: str) -> Path:
    found = _of_name(root, name)
    if not found:
        raise InputError(f"--resume: there is no run {name!r} in {root}. Start it without --resume first.")
    return max(found, key=lambda path: int(path.name.removeprefix(name).lstrip("-") or 1))
