"""A job of a Ray cluster, followed from anywhere: what it prints, through networks that fail.

Consumes Ray's client of jobs, produces lines; waits for a job as long as its dashboard answers, and for that to answer
again with a deadline. No torch.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from ddpo.errors import DeadlineError, WorkerError

KNOCK = 10.0  # seconds for the dashboard's port to open
SILENCE = 10.0  # seconds without a word of the job, after which its cluster is asked whether it is there
PATIENCE = 600.0  # seconds for a connection that was lost to come back
POLL = 0.5
RAYS_OWN = ("job_manager.py", "Running entrypoint for job", "Set ray log level")  # in lines that are not the run's


def knock(url: str) -> None:
    """Raises OSError where nobody listens there."""
    place = urlsplit(url)
    port = place.port or (443 if place.scheme == "https" else 80)
    socket.create_connection((place.hostname or "", port), timeout=KNOCK).close()


def follow(client: Any, job: str) -> int:
    """Print what a job prints until it has ended; its exit code. Ctrl-C leaves it running, and so does a network that
    fails: that is said, and tried again; raises DeadlineError where it does not come back."""
    tail = Tail(client, job)
    while True:
        try:
            knock(client._address)
            asyncio.run(tail.read())
            if (info := client.get_job_info(job)).status.is_terminal():
                return tail.end(info)
        except OSError as error:
            tail.lose(error)
        time.sleep(POLL)


class Tail:
    """What a job prints, every letter once, however often it has to be read from its beginning.

    lost: since when nothing is heard, because the connection failed; 0 where it did not
    """

    def __init__(self, client: Any, job: str) -> None:
        self.client, self.job, self.url, self.seen, self.rest, self.lost = client, job, client._address, 0, "", 0.0

    async def read(self) -> None:
        """Print all that is new until the job has ended; raises OSError where the network fails."""
        from aiohttp import ClientError, WSServerHandshakeError

        skip = self.seen
        try:
            async for text in self._spoken():
                self._take(text[skip:])
                skip = max(0, skip - len(text))
        except (ClientError, RuntimeError) as error:
            if isinstance(error, WSServerHandshakeError) and error.status == HTTPStatus.NOT_FOUND:
                raise WorkerError(f"{self.url} knows no job {self.job}: a head that was started anew has forgotten "
                                  "its jobs. Submitted again, the run goes on from its checkpoint.") from None
            raise ConnectionError(str(error)) from None

    async def _spoken(self) -> AsyncIterator[str]:
        """Pieces of it. A connection that is cut is as silent as a job that says nothing: knock at the cluster then."""
        stream = self.client.tail_job_logs(self.job)
        while True:
            piece = asyncio.ensure_future(_next(stream))
            while not (await asyncio.wait([piece], timeout=SILENCE))[0]:
                knock(self.url)
            if (text := piece.result()) is None:
                return
            yield text

    def _take(self, text: str) -> None:
        if self.lost:
            _tell(f"{self.url} answers again.")
        self.lost, self.seen = 0.0, self.seen + len(text)
        *lines, self.rest = (self.rest + text).split("\n")
        _print(lines)

    def lose(self, error: Exception) -> None:
        """The connection has failed, perhaps once more: say so the first time."""
        if not self.lost:
            self.lost = time.monotonic()
            _tell(f"the connection to {self.url} is lost ({type(error).__name__}: {error}). Job {self.job} needs none "
                  f"and goes on; this command looks for it for {PATIENCE:g} s more. Ctrl-C ends the command alone.")
        if time.monotonic() - self.lost > PATIENCE:
            raise DeadlineError(f"{self.url} has not answered again for {PATIENCE:g} s.") from None

    def end(self, info: Any) -> int:
        """The job has ended: its exit code."""
        _print([self.rest] if self.rest else [])
        if info.driver_exit_code is None:
            _tell(f"job {self.job} {info.status.value}: {info.message}")
            return 1
        return int(info.driver_exit_code)


def _tell(text: str) -> None:
    print(f"ddpo: {text}", file=sys.stderr, flush=True)


async def _next(stream: AsyncIterator[str]) -> str | None:
    return await anext(stream, None)


def _print(lines: list[str]) -> None:
    for line in own(lines):
        print(line, flush=True)


def own(lines: list[str]) -> list[str]:
    """Those of what a job has printed that are the run's, and not Ray's."""
    return [line for line in lines if not any(mark in line for mark in RAYS_OWN)]


def printed(client: Any, job: str) -> None:
    """Print what a job has printed so far."""
    _print(client.get_job_logs(job).splitlines())


def last(client: Any, job: str) -> str:
    """The last thing that a job has printed; "" where it printed nothing, or its log went with its node."""
    try:
        said = own(client.get_job_logs(job).splitlines())
    except (OSError, RuntimeError):
        return ""
    return next((line for line in reversed(said) if line.strip()), "")
