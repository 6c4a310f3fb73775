"""Whether a server keeps to the reward protocol: good requests, and every kind of bad one (docs/http_rewards.md).

Consumes the address of a server, produces one (check, what is wrong or "") pair after the other. Waits for each answer
with a deadline; the last check takes as long as the server lets a body take. Whether the scores are good ones is not
looked at.
"""

from __future__ import annotations

import gzip
import http.client
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import msgpack
import numpy as np

from ddpo.consistency import is_server
from ddpo.deadline import deadline
from ddpo.errors import DdpoError, InputError
from ddpo.types import Images
from rewards.wire import MEDIA, Description, WireError, one_line, pack_request, unpack_answer, unpack_description

PATIENCE = 15.0  # seconds for an answer that takes no scoring
QUESTION = {"questions": ["Is there a cat?"], "answers": ["yes"], "nested": {"list": [1, 2.5, None, True, "ä"]}}
MARK = "a place that is replaced"
PICKLE = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R."  # would run `true` where it is unpickled
Check = Callable[[], str]


@dataclass(frozen=True)
class Reply:
    """Of a server; status 0 is a connection that ended without one."""

    status: int
    media: str = ""
    content: bytes = b""

    def __str__(self) -> str:
        said = f"{len(self.content)} bytes of msgpack" if self.media == MEDIA else one_line(self.content)
        return f"answers {self.status}: {said}" if self.status else "closes the connection without an answer"


class Caller:
    """Asks a server, rightly and wrongly, over a new connection each time."""

    def __init__(self, url: str, token: str) -> None:
        if not is_server(url):
            raise InputError(f"{url} is no server; give its address, for example http://scorer:8000.")
        self.parts, self.token = urlsplit(url), token

    def ask(self, method: str, path: str, body: bytes = b"", seconds: float = PATIENCE, **changes: str | None) -> Reply:
        """One request; `changes` are headers with other values, "_" for "-", None to leave one out."""
        connection = self._begin(method, path, len(body), seconds, changes)
        with suppress(OSError):  # a server that has seen enough may answer and close before all is sent
            connection.send(body)
        return self._reply(connection)

    def cut(self, body: bytes, length: int) -> Reply:
        """A request that ends before the length it declares."""
        connection = self._begin("POST", "/score", length, PATIENCE, {})
        with suppress(OSError):
            connection.send(body)
            connection.sock.shutdown(socket.SHUT_WR)
        return self._reply(connection)

    def drip(self, seconds: float) -> Reply | None:
        """A request whose body comes byte by byte; None where the server puts up with it for so long."""
        connection, end = self._begin("POST", "/score", 10**6, seconds, {}), time.monotonic() + seconds
        while time.monotonic() < end:
            if select.select([connection.sock], [], [], 0.2)[0]:
                return self._reply(connection)
            with suppress(OSError):
                connection.send(b"\x86")
        connection.close()
        return None

    def _begin(self, method: str, path: str, length: int, seconds: float, changes: Mapping[str, str | None]) -> Any:
        kind = http.client.HTTPSConnection if self.parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(self.parts.hostname), self.parts.port, timeout=seconds)
        connection.connect()
        connection.putrequest(method, self.parts.path.rstrip("/") + path, skip_accept_encoding=True)
        headers = {"Content_Type": MEDIA, "Content_Length": str(length)} if method == "POST" else {}
        headers |= {"Authorization": f"Bearer {self.token}"} if self.token else {}
        for name, value in (headers | dict(changes)).items():
            if value is not None:
                connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        return connection

    def _reply(self, connection: Any) -> Reply:
        try:
            answer = connection.getresponse()
            return Reply(answer.status, answer.headers.get_content_type(), answer.read())
        except TimeoutError:
            raise
        except (http.client.HTTPException, OSError):
            return Reply(0)
        finally:
            connection.close()


def conformance(url: str, token: str) -> Iterator[tuple[str, str]]:
    """Run all checks against a server; raises InputError where nothing answers there."""
    caller = Caller(url, token)
    try:
        described = caller.ask("GET", "/reward")
    except OSError as error:
        raise InputError(f"{url} is not there: {error}.") from None
    try:
        found = unpack_description(described.content)
    except WireError as error:
        yield "GET /reward describes the reward", f"{described}" if described.status != 200 else str(error)
        return
    yield "GET /reward describes the reward", ""
    for name, check in _checks(caller, found):
        yield name, _outcome(name, check, 2 * found.timeout + found.limits.seconds + 4 * PATIENCE)


def _outcome(name: str, check: Check, seconds: float) -> str:
    try:
        with deadline(seconds, name):
            return check()
    except (OSError, DdpoError) as error:
        return f"{type(error).__name__}: {error}"


def _checks(caller: Caller, found: Description) -> Iterator[tuple[str, Check]]:
    batch = _images(min(4, found.limits.images), 64, 64)
    yield "GET /health answers 200", lambda: _status(caller.ask("GET", "/health", Authorization=None), 200)
    yield "another address is 404", lambda: _status(caller.ask("GET", "/none"), 404)
    yield "GET /score is 405", lambda: _status(caller.ask("GET", "/score"), 405, 404)
    if caller.token:
        for name, given in (("no token", None), ("a wrong token", "Bearer " + "x" * 32)):
            for verb, path in (("GET", "/reward"), ("POST", "/score")):
                body = pack_request(batch) if verb == "POST" else b""
                ask = partial(caller.ask, verb, path, body, Authorization=given)
                yield f"{name} at {path} is 401", lambda ask=ask: _status(ask(), 401)
    for name, images in _good(batch):
        yield f"scores {name}", partial(_scores, caller, found, images)
    for name, body in _bad(batch, found):
        yield f"refuses {name}", lambda body=body: _refused(caller.ask("POST", "/score", body))
    body = pack_request(batch)
    plain = partial(caller.ask, "POST", "/score", body, Content_Type="text/plain")
    yield "refuses another content type", lambda: _refused(plain())
    squeezed = partial(caller.ask, "POST", "/score", gzip.compress(body), Content_Encoding="gzip")
    yield "refuses a compressed body", lambda: _refused(squeezed())
    huge = partial(caller.ask, "POST", "/score", Content_Length=str(found.limits.bytes + 1))
    yield "refuses a body that is too large, by its declared length", lambda: _status(huge(), 413)
    yield "puts up with a body that ends early", lambda: _status(caller.cut(body[: len(body) // 2], len(body)), 0, 4)
    yield "ends a body that comes byte by byte", lambda: _dripped(caller, found.limits.seconds + PATIENCE)
    yield "still scores after all that", partial(_scores, caller, found, batch)


def _images(count: int, height: int, width: int) -> Images:
    pixels = np.random.default_rng(count + height).integers(256, size=(count, height, width, 3), dtype=np.uint8)
    return Images(tuple(range(7, 7 + count)), ("a cat",) * count, (QUESTION,) * count, pixels)


def _good(batch: Images) -> Iterator[tuple[str, Images]]:
    yield "a batch", batch
    yield "a batch of one", _images(1, 64, 64)
    yield "pictures of another size, not square", _images(1, 48, 80)
    yield "large ids, in no order", replace(batch, ids=tuple(2**40 - 3 * row for row in range(len(batch.ids))))
    texts = ("Ein Käfer 猫 🐞", "", "x" * 1000, "\n")
    yield "texts of any language, and none", replace(batch, text=texts[: len(batch.ids)])
    yield "no metadata", replace(batch, metadata=({},) * len(batch.ids))


def _bad(batch: Images, found: Description) -> Iterator[tuple[str, bytes]]:
    """Bodies that are not of the protocol."""
    good, limits = pack_request(batch), found.limits
    table: dict[str, Any] = msgpack.unpackb(good)
    pixels = table["pixels"]

    def other(**changes: Any) -> bytes:
        return bytes(msgpack.packb(table | changes) or b"")

    def drawn(**changes: Any) -> bytes:
        return other(pixels=pixels | changes)

    yield "an empty body", b""
    yield "bytes that are no msgpack", b"\xc1" * 100
    yield "a pickle", PICKLE
    yield "JSON", b'{"protocol": "ddpo-reward/1"}'
    yield "half a message", good[: len(good) // 2]
    yield "a message and more", good + b"\x00"
    yield "a list", b"\x90"
    yield "a map that claims four billion entries", b"\xdf\xff\xff\xff\xff"
    yield "lists in lists, a thousand deep", b"\x81\xa3ids" + b"\x91" * 1000
    yield "metadata in lists, a thousand deep", other(metadata=[MARK] * len(batch.ids)).replace(
        bytes(msgpack.packb(MARK) or b""), b"\x91" * 999 + b"\x90")
    yield "another version of the protocol", other(protocol="ddpo-reward/999")
    yield "a key that is missing", bytes(msgpack.packb({k: v for k, v in table.items() if k != "text"}) or b"")
    yield "a key too many", other(extra=1)
    yield "no images", pack_request(_images(0, 64, 64))
    yield "more images than it takes", pack_request(_images(limits.images + 1, 1, 1))
    yield "pictures larger than it takes", pack_request(_images(1, 1, limits.side + 1))
    yield "an id that comes twice", other(ids=[1] * (len(batch.ids) + 1))
    yield "ids that are texts", other(ids=[str(image) for image in batch.ids])
    yield "too few texts", other(text=["a cat"] * (len(batch.ids) + 1))
    yield "texts that are numbers", other(text=[1] * len(batch.ids))
    yield "metadata that is no map", other(metadata=["x"] * len(batch.ids))
    yield "an extension type", other(metadata=[{"x": msgpack.ExtType(5, b"x")}] * len(batch.ids))
    yield "floats for pixels", drawn(dtype="float32")
    yield "a shape that the bytes do not fill", drawn(shape=[len(batch.ids), 64, 65, 3])
    yield "a shape of negative numbers", drawn(shape=[len(batch.ids), -64, -64, 3])
    yield "four channels", drawn(shape=[len(batch.ids), 48, 64, 4])
    yield "pixels as text", drawn(data="x" * len(pixels["data"]))


def _scores(caller: Caller, found: Description, images: Images) -> str:
    reply = caller.ask("POST", "/score", pack_request(images), 2 * found.timeout + PATIENCE)
    if reply.status != 200 or reply.media != MEDIA:
        return f"{reply} ({reply.media}); expected 200 ({MEDIA})"
    unpack_answer(reply.content, images.ids)
    return ""


def _status(reply: Reply, *allowed: int) -> str:
    """Whether it answers one of these; 4 is any of 400 to 499, 0 a closed connection."""
    return "" if {reply.status, reply.status // 100} & set(allowed) else f"{reply}"


def _refused(reply: Reply) -> str:
    return _status(reply, 4) and f"{reply}; expected 400 or another of 400 to 499"


def _dripped(caller: Caller, seconds: float) -> str:
    reply = caller.drip(seconds)
    return _status(reply, 0, 4) if reply else f"the body was not complete after {seconds:g} s, and it still waits"
