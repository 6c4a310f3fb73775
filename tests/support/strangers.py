"""Both ends of a reward over HTTP: a good server in a thread; servers and bodies that nobody should have to meet."""

from __future__ import annotations

import random
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import numpy as np

from ddpo.types import Images
from rewards.serve import Service, listening
from rewards.wire import Limits
from rewards.worker import RewardWorker

LIMITS = Limits(images=8, side=128, bytes=6 * 2**20, seconds=0.3)
Script = Callable[[Any, int], None]  # what a server does with a connection and the number of the request


@contextmanager
def serving(worker: RewardWorker, token: str = "", room: int = 8) -> Iterator[tuple[str, Service]]:
    """A server of a reward; gives its address and what is behind it."""
    service = Service(worker, LIMITS, token, room)
    thread = threading.Thread(target=service.work)
    thread.start()
    with listening(service, "127.0.0.1", 0) as url:
        try:
            yield url, service
        finally:
            service.stop()
            thread.join(10)


@contextmanager
def server(script: Script) -> Iterator[str]:
    """A server that reads whole requests and then does what the script says; gives its address."""
    count = iter(range(10**9))

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            try:
                length = 0
                while (line := self.rfile.readline()) not in (b"\r\n", b""):
                    name, _, value = line.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                self.rfile.read(length)
                script(self.connection, next(count))
            except OSError:  # whoever asked has gone
                pass

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address, daemon_threads, request_queue_size = True, True, 64

    with Server(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()
        thread.join(5)


def answer(status: int, body: bytes = b"", media: str = "application/msgpack", more: str = "") -> bytes:
    """A whole HTTP response."""
    head = f"HTTP/1.1 {status} x\r\nContent-Type: {media}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{more}"
    return head.encode() + b"\r\n" + body


def always(response: bytes) -> Script:
    return lambda connection, number: connection.sendall(response)


def images(count: int, height: int = 16, width: int = 16, seed: int = 0) -> Images:
    pixels = np.random.default_rng(seed).integers(256, size=(count, height, width, 3), dtype=np.uint8)
    return Images(tuple(range(count)), ("a cat",) * count, ({"n": 1},) * count, pixels)


def damaged(body: bytes, rng: random.Random) -> bytes:
    """The body with one to four accidents: bits, holes, repeats, cuts, msgpack heads that claim much, other values."""
    body = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(body) + 1) if rng.random() < 0.3 else rng.randrange(min(len(body), 200) + 1)
        match rng.randrange(7):
            case 0 if at < len(body):
                body[at] ^= 1 << rng.randrange(8)
            case 1:
                del body[at : at + rng.randint(1, 64)]
            case 2:
                body[at:at] = body[at : at + rng.randint(1, 64)]
            case 3:
                del body[at:]
            case 4:
                body[at:at] = rng.choice(HEADS) + rng.randbytes(rng.randint(0, 4))
            case 5 if at < len(body):
                body[at] = rng.choice(HEADS)[0]
            case _:
                body = _with_other_value(body, rng)
    return bytes(body)


HEADS = (
    b"\xc0", b"\xc2", b"\xc1", b"\x80", b"\x90", b"\x8f", b"\x9f", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01", b"\xcb\x7f\xf8\0\0\0\0\0\0",
    b"\xcb\x7f\xf0\0\0\0\0\0\0", b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff", b"\xd3\x80\0\0\0\0\0\0\0",
    b"\xd6\xff\0\0\0\0", b"\x91" * 200, b"\x91" * 999,
)
OTHERS = (
    None, True, -1, 2**64 - 1, -(2**63), float("nan"), float("inf"), "", "\0", b"", b"x", [], {}, [[[[]]]], {"a": {}},
    [1, 1], [None, None], ["a", "b"], [{}, {}], [0, 16, 16, 3], [2, 2**40, 2**40, 3], "uint8", "ddpo-reward/2",
)


def _with_other_value(body: bytearray, rng: random.Random) -> bytearray:
    """A message that parses still, with another value somewhere."""
    try:
        table = msgpack.unpackb(bytes(body))
        place = table
        while isinstance(place, dict) and place:
            key = rng.choice(sorted(place, key=repr))
            if not isinstance(place[key], dict) or rng.random() < 0.3:
                place[key] = rng.choice(OTHERS)
                break
            place = place[key]
        return bytearray(msgpack.packb(table))
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException):
        return body
