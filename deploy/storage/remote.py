"""A folder in storage that fsspec reaches by URI: s3://bucket/prefix, gs://..., file:///shared/disk.

Consumes bytes and files, produces objects that are whole or not there; waits for the storage, whose client has time
limits and tries of its own. What it raises is the client's affair: see `reachable`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ddpo.errors import InputError

# What clients are to do otherwise than they would; the environment (AWS_..., FSSPEC_...) configures the rest.
S3: dict[str, Any] = {"config_kwargs": {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 1}}}
OPTIONS: dict[str, dict[str, Any]] = {"s3": S3, "s3a": S3, "file": {"auto_mkdir": True}}

START, SLOWEST = 30.0, 1e6  # seconds and bytes a second that an upload may take
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # of this package


def is_uri(place: object) -> bool:
    """Whether it is such a folder, and not one of this machine's own."""
    return "://" in str(place)


class Remote:
    """Names are relative to `uri`, with slashes."""

    def __init__(self, uri: str) -> None:
        from fsspec.core import url_to_fs

        self.uri = uri.rstrip("/")
        options = OPTIONS.get(self.uri.partition("://")[0], {})
        self.fs, path = url_to_fs(self.uri, use_listings_cache=False, **options)
        self.path = path.rstrip("/")
        self.beside = getattr(self.fs, "local_file", False)  # a file there grows before readers' eyes; objects do not

    def child(self, name: str) -> Remote:
        """A folder in it."""
        return Remote(f"{self.uri}/{name}")

    def folders(self) -> list[str]:
        """Names of the folders in it."""
        with suppress(FileNotFoundError):
            found = self.fs.ls(self.path, detail=True)
            return [entry["name"].rstrip("/").rpartition("/")[2] for entry in found if entry["type"] == "directory"]
        return []

    def files(self) -> list[str]:
        """Names of all files in it, at any depth."""
        with suppress(FileNotFoundError):
            return [path.removeprefix(f"{self.path}/") for path in self.fs.find(self.path)]
        return []

    def read(self, name: str) -> bytes | None:
        """A file's content; None where it is not there."""
        try:
            return self.fs.cat_file(f"{self.path}/{name}")
        except FileNotFoundError:
            return None

    def write(self, name: str, source: bytes | Path) -> None:
        """Put a file there, in place of another."""
        target = f"{self.path}/{name}"
        there = f"{target}.partial" if self.beside else target
        if isinstance(source, Path):
            self.fs.put_file(str(source), there, **self._limit(source.stat().st_size))
        else:
            self.fs.pipe_file(there, source, **self._limit(len(source)))
        if self.beside:
            Path(there).replace(target)

    def _limit(self, size: int) -> dict[str, float]:
        """aiohttp's own limits do not count before a request has gone out whole, and it may never."""
        return {"timeout": START + size / SLOWEST} if self.fs.async_impl else {}

    def create(self, name: str, content: bytes) -> bool:
        """Put a file there if none is; whether that was so. Not every store can tell for two at the same time."""
        target = f"{self.path}/{name}"
        try:
            if self.beside:
                with self.fs.open(target, "xb") as file:
                    file.write(content)
            else:
                self.fs.pipe_file(target, content, mode="create", **self._limit(len(content)))
        except OSError:  # FileExistsError, or what the client makes of "412 Precondition Failed"
            if self.read(name) is None:
                raise
            return False
        return True

    def remove(self, names: Iterable[str]) -> None:
        """Take files away; those that are not there are no error."""
        for name in names:
            with suppress(FileNotFoundError):
                self.fs.rm_file(f"{self.path}/{name}")

    def fetch(self, names: list[str], folder: Path) -> None:
        """Bring files into a folder, each whole or not there; many at a time where the storage allows it."""
        targets = [folder / name for name in names]
        partials = [target.with_name(f".{target.name}.partial") for target in targets]
        for target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
        self.fs.get([f"{self.path}/{name}" for name in names], [str(partial) for partial in partials])
        for partial, target in zip(partials, targets, strict=True):
            partial.replace(target)


@contextmanager
def reachable(uri: str) -> Iterator[None]:
    """Turn what goes wrong at the first contact into an InputError: there is nothing yet that could be lost."""
    try:
        yield
    except InputError:
        raise
    except (ImportError, ValueError) as error:
        extra = EXTRAS.get(uri.partition("://")[0])
        cure = f"`pip install -e .[{extra}]` brings what it takes" if extra else "fsspec's documentation has the kinds"
        raise InputError(f"{uri}: this kind of storage cannot be reached from here ({error}); {cure}.") from None
    except Exception as error:  # of the storage's client, each of which has its own
        raise InputError(
            f"{uri} cannot be reached or not be used ({type(error).__name__}: {error}): nothing the run learns could "
            "be kept there. Look at the address, at the bucket, which must exist, and at the credentials (for S3 "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL where it is not Amazon's)."
        ) from None
