"""`ddpo serve-reward KIND`: one reward as a server that runs elsewhere ask (rewards.serve); `ddpo check-reward URL`.

Consumes the reward's options and where to listen, produces answers until SIGTERM or Ctrl-C, which finish the request
in hand; the second stops at once.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ddpo.config import Run
from ddpo.errors import ContractError, InputError
from ddpo.runfile import parse
from deploy.cluster import GPU_SETTINGS, thread_settings
from rewards.conformance import conformance
from rewards.locate import check
from rewards.pool import sources
from rewards.serve import Service, listening
from rewards.token import VARIABLE, read_token
from rewards.wire import Limits
from rewards.worker import RewardWorker

OF_A_RUN = ("weight", "workers", "cpus", "gpus")  # what a server has no use for


def serve(options: argparse.Namespace) -> None:
    """Serve until told to stop; raises InputError before anything is loaded where it can."""
    kind = options.kind
    run = _run(kind, options.words)
    token = read_token(options.token_file, "--token-file")
    if not token and not _loopback(options.host):
        raise InputError(
            f"--host {options.host} lets other machines in, and without a token anybody may ask. Give --token-file "
            f"FILE, or {VARIABLE} in the environment (openssl rand -hex 32 makes one)."
        )
    check(run)
    config, limits = run.rewards[kind], Limits(options.images, options.side, options.megabytes * 2**20)
    os.environ.update(thread_settings(config.threads) | GPU_SETTINGS)
    service = Service(RewardWorker(kind, config, sources(run)[kind]), limits, token, options.room)
    with listening(service, options.host, options.port) as url, _stopping(service):
        print(_announcement(url, service), file=sys.stderr, flush=True)
        service.work()


def check_server(url: str, token_file: str) -> None:
    """Print a line for every check of the protocol; raises ContractError where one fails."""
    failed = total = 0
    for name, wrong in conformance(url, read_token(token_file, "--token-file")):
        print(f"FAIL  {name}: {wrong}" if wrong else f"pass  {name}", flush=True)
        failed, total = failed + bool(wrong), total + 1
    if failed:
        raise ContractError(f"{url} fails {failed} of {total} checks; docs/http_rewards.md says what is expected.")
    print(f"{url} passes all {total} checks.")


def _run(kind: str, words: list[str]) -> Run:
    """The reward as a run would have it."""
    for word in words:
        if word.partition("=")[0].strip() in (*OF_A_RUN, "kind"):
            raise InputError(f"{word}: a server has no such option; it belongs into the run that asks the server.")
    overrides = [f"rewards.{kind}.{word}" for word in words]
    return parse({"rewards": {kind: {"kind": kind}}}, overrides, "serve-reward")


def _announcement(url: str, service: Service) -> str:
    limits, config = service.limits, service.worker.config
    token = "a token is needed" if service.token else "no token is needed, and only this machine can ask"
    return (
        f"Serving {service.worker.name} at {url}; {token}.\n"
        f"A request: {limits.images} images, {limits.side} pixels a side, {limits.bytes / 2**20:g} MB, there within "
        f"{limits.seconds:g} s; {service.room} may wait, each is scored within {config.timeout:g} s.\n"
        f"In the run file: kind = \"http\", url = \"{url}\". What is sent is not encrypted: over a network that others "
        "use, put a proxy with TLS before it. Ctrl-C or SIGTERM finishes the request in hand."
    )


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def _stopping(service: Service) -> Iterator[None]:
    """SIGINT and SIGTERM stop the service in the block, the second of them at once."""

    def stop(signum: int, frame: FrameType | None) -> None:
        if service.stopping:
            raise KeyboardInterrupt
        service.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
