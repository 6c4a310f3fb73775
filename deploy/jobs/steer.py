"""`ddpo scale`, `status` and `stop`: how a run on a cluster stands, and having it do otherwise, while it goes on.

Consumes the command's options, produces lines for a person; waits, with deadlines, for the run's mailbox. Where the
cluster is known by its dashboard's address only, the same command runs there, as a small job. No torch.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from typing import Any

from ddpo.errors import InputError
from deploy.cluster import visiting
from deploy.jobs import following, mailbox, submission

AGAIN = 3.0  # seconds between two looks of --watch


def steer(options: argparse.Namespace) -> int:
    """Carry the command out; its exit code."""
    url = _far(options.address)
    if url:
        client = submission.connect(url)
        jobs = submission.jobs(client, options.run) if options.run else []
        if jobs and jobs[0].status.is_terminal() and not _alive(client, options.run):
            print(_ended(client, options.run, jobs[0]), flush=True)
            return int(options.command != "status")
        return submission.there(client, _words(options))
    with visiting(options.address):
        for text in COMMANDS[options.command](options):
            print(text, flush=True)
    return 0


def _far(address: str) -> str:
    """The dashboard's URL where that is what is known of the cluster, else ""."""
    if "://" in address:
        return address
    near = os.environ.get("RAY_ADDRESS", "")
    return "" if address or (near and not submission.is_url(near)) else submission.told()


def _alive(client: Any, run: str) -> bool:
    """Whether a run of that name is on the cluster, which somebody may have started there without submitting it."""
    return submission.lives(client, mailbox.address(run), mailbox.NAMESPACE)


def _ended(client: Any, run: str, job: Any) -> str:
    """How a run that was submitted has ended: Ray's word for it, and the run's last one."""
    lost = job.status.value == "FAILED" and job.driver_exit_code is None  # Ray alone knows why
    theirs = (job.message or "it left no word").splitlines()[-1]
    said = theirs if lost else following.last(client, job.submission_id) or theirs
    return f"{run} goes on no more: {said.removeprefix('ddpo: ')} (job {job.submission_id}, {job.status.value})"


def _words(options: argparse.Namespace) -> list[str]:
    """The command as it is written on the cluster itself."""
    words = [options.command, *([options.run] if options.run else []), *getattr(options, "wishes", [])]
    return [*words, "--watch"] if getattr(options, "watch", False) else words


def _scale(options: argparse.Namespace) -> Iterator[str]:
    yield mailbox.table(mailbox.scale(options.run, options.wishes))


def _status(options: argparse.Namespace) -> Iterator[str]:
    if not options.run:
        yield "\n".join(mailbox.status(run).partition("\n")[0] for run in mailbox.runs()) or "No run is on the cluster."
        return
    yield mailbox.status(options.run)
    while options.watch:
        time.sleep(AGAIN)
        try:
            yield f"\n{mailbox.status(options.run)}"
        except InputError:
            yield f"\n{options.run} has ended."
            return


def _stop(options: argparse.Namespace) -> Iterator[str]:
    mailbox.stop(options.run)
    yield f"{options.run} ends after the step in hand, with a checkpoint; `ddpo submit` or --resume goes on from there."


COMMANDS = {"scale": _scale, "status": _status, "stop": _stop}
