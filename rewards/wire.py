"""A reward's messages over HTTP: msgpack with declared dtype, shape and size limits (docs/http_rewards.md).

Consumes `Images` or `Scores`, produces a body, and back; waits for nothing. What arrives comes from strangers: nothing
is unpickled, and nothing is built before its size is known, since a few bytes of msgpack can ask for gigabytes.

B images, Y X pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from reprlib import repr as shown  # of a stranger's value: neither as long nor as deep as it is
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from ddpo.errors import DdpoError
from ddpo.stages import WHOLE
from ddpo.types import Images, Scores

PROTOCOL = "ddpo-reward/1"
MEDIA = "application/msgpack"
WORDS = 4 * 2**20  # bytes of a whole answer, and of a request without its pixels
LONGEST = 2**16  # of any array or map
DEEPEST = 8  # nesting of metadata
SHORT = 64  # bytes of a key, and of what is read before the size of the rest is known
MOST_KEYS = 16  # of a message's own maps, more than any has


class WireError(DdpoError):
    """A body is not what the protocol says."""


@dataclass(frozen=True)
class Limits:
    """Of one request: images, pixels of the longer side, bytes of the body, and seconds until all of it is there."""

    images: int = 256
    side: int = 2048
    bytes: int = 128 * 2**20
    seconds: float = 60.0


@dataclass(frozen=True)
class Description:
    """What a server says of itself; `timeout` is what it gives its reward for one request, in seconds."""

    name: str
    kind: str
    timeout: float
    limits: Limits


def pack_request(images: Images) -> bytes:
    """Images as the body of POST /score; raises WireError where metadata holds what is no plain value."""
    pixels = {"dtype": "uint8", "shape": list(images.pixels_BYX3.shape), "data": images.pixels_BYX3.tobytes()}
    return _pack({
        "protocol": PROTOCOL, "ids": list(images.ids), "text": list(images.text),
        "metadata": [dict(metadata) for metadata in images.metadata], "pixels": pixels,
    })


def unpack_request(body: bytes, limits: Limits) -> Images:
    """The images of a request; raises WireError."""
    _check(len(body) <= limits.bytes, f"a body of {len(body)} bytes; the limit is {limits.bytes}")
    table = _table(body, ("protocol", "ids", "text", "metadata"), "pixels")
    ids = _ids(table["ids"])
    _check(1 <= len(ids) <= limits.images, f"{len(ids)} images; a request has 1 to {limits.images}")
    text = _column(table, "text", len(ids), lambda value: isinstance(value, str), "a text")
    metadata = _column(table, "metadata", len(ids), _plain_map, f"a map of plain values, {DEEPEST} deep at most")
    return Images(ids, tuple(text), tuple(metadata), _pixels(table["pixels"], len(ids), limits.side))


def pack_answer(scores: Scores) -> bytes:
    """Scores as the body of an answer; raises WireError where it would be too large."""
    body = _pack({
        "protocol": PROTOCOL, "ids": list(scores.ids), "values": [scores.values.get(image) for image in scores.ids],
        "failures": [scores.failures.get(image) for image in scores.ids],
        "info": {key: list(values) for key, values in scores.info.items()}, "seconds": sum(scores.seconds.values()),
    })
    _check(len(body) <= WORDS, f"an answer of {len(body)} bytes; the limit is {WORDS}")
    return body


def unpack_answer(body: bytes, ids: Sequence[int]) -> Scores:
    """The scores of these images, in their order; raises WireError."""
    table = _table(body, ("protocol", "ids", "values", "failures", "info", "seconds"))
    _check(_ids(table["ids"]) == tuple(ids), "ids are not those of the request, in its order")
    values = _column(table, "values", len(ids), lambda v: v is None or _finite(v), "a finite number or nil")
    failures = _column(table, "failures", len(ids), lambda v: v is None or isinstance(v, str), "a reason or nil")
    _check(all((v is None) != (f is None) for v, f in zip(values, failures, strict=True)),
           "an image has a value or a reason why it has none: exactly one of the two is nil")
    _check(isinstance(table["info"], dict), "info is no map")
    info = {key: _column(table["info"], key, len(ids), _scalar, "a number, a text or nil") for key in table["info"]}
    _check(_finite(table["seconds"]) and table["seconds"] >= 0, "seconds is no number of 0 or more")
    return Scores(
        tuple(ids), {image: float(v) for image, v in zip(ids, values, strict=True) if v is not None},
        {image: f for image, f in zip(ids, failures, strict=True) if f is not None}, info,
        {WHOLE: float(table["seconds"])},
    )


def pack_description(description: Description) -> bytes:
    """A description as the body of GET /reward."""
    return _pack({"protocol": PROTOCOL, **asdict(description)})


def unpack_description(body: bytes) -> Description:
    """What a server says of itself; raises WireError."""
    table = _table(body, ("protocol", "name", "kind", "timeout", "limits"))
    match table:
        case {
            "name": str(name), "kind": str(kind), "timeout": timeout,
            "limits": {"images": int(images), "side": int(side), "bytes": int(size), "seconds": seconds, **others},
        } if not others and min(images, side, size) > 0 and _finite(timeout) and _finite(seconds):
            return Description(name, kind, float(timeout), Limits(images, side, size, float(seconds)))
    raise WireError("the description has other types than name, kind, timeout and limits should have")


def one_line(text: bytes | str) -> str:
    """A stranger's text, short and printable."""
    text = text[:600].decode("utf-8", "replace") if isinstance(text, bytes) else text[:600]
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:300]


def _pack(table: dict[str, Any]) -> bytes:
    try:
        return bytes(msgpack.packb(table) or b"")
    except (ValueError, TypeError, OverflowError) as error:
        raise WireError(f"cannot be written as msgpack: {type(error).__name__}: {error}") from None


def _table(body: bytes | memoryview, names: tuple[str, ...], large: str = "") -> dict[str, Any]:
    """The values of a map with exactly these keys; the one named `large` stays as it is, unread."""
    try:
        spans = _spans(body)
        if "protocol" in names:
            said = _read(spans.get("protocol", b"\xc0")[:SHORT])
            _check(said == PROTOCOL, f"speaks protocol {shown(said)}, and this program {PROTOCOL!r}")
        expected = {*names, large} - {""}
        _check(set(spans) == expected, f"has the keys {sorted(spans)!r:.200}, and should have {sorted(expected)}")
        words = sum(len(span) for name, span in spans.items() if name != large)
        _check(words <= WORDS, f"{words} bytes beside the pixels; the limit is {WORDS}")
        return {name: span if name == large else _read(span) for name, span in spans.items()}
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise WireError(f"no whole msgpack map: {type(error).__name__}: {error!s:.200}") from None


def _spans(body: bytes | memoryview) -> dict[str, memoryview]:
    """Where each value of a map is, without building any: the parser skips over it."""
    view, reader = memoryview(body), msgpack.Unpacker(max_buffer_size=max(len(body), 1))
    reader.feed(body)
    spans: dict[str, memoryview] = {}
    count = reader.read_map_header()
    if count > MOST_KEYS:
        raise ValueError(f"a map of {count} keys")
    for _ in range(count):
        start = reader.tell()
        reader.skip()
        middle = reader.tell()
        reader.skip()
        key = _read(view[start : min(middle, start + SHORT)])
        if not isinstance(key, str) or key in spans:
            raise ValueError(f"the key {shown(key)} is no text, or comes twice")
        spans[key] = view[middle : reader.tell()]
    if reader.tell() != len(body):
        raise ValueError(f"{len(body) - reader.tell()} bytes follow after it")
    return spans


def _read(span: bytes | memoryview, longest: int = LONGEST) -> Any:
    return msgpack.unpackb(span, max_array_len=longest, max_map_len=longest, ext_hook=_refuse, strict_map_key=True)


def _refuse(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code}")


def _pixels(span: memoryview, count: int, side: int) -> NDArray[np.uint8]:
    table = _table(span, ("dtype", "shape"), "data")
    _check(table["dtype"] == "uint8", f"pixels are {shown(table['dtype'])}, and should be 'uint8'")
    shape = table["shape"]
    whole = isinstance(shape, list) and len(shape) == 4 and all(type(length) is int for length in shape)
    _check(whole and shape[0] == count and all(1 <= length <= side for length in shape[1:3]) and shape[3] == 3,
           f"pixels of shape {shown(shape)}, and should be [{count}, height, width, 3] with sides of 1 to {side}")
    size = math.prod(shape)
    _check(size <= len(table["data"]) <= size + 5, f"{len(table['data'])} bytes of pixels do not fill shape {shape}")
    try:
        data = _read(table["data"], longest=0)
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError(f"pixels.data is no binary: {error!s:.100}") from None
    _check(isinstance(data, bytes) and len(data) == size, f"pixels.data is no binary of {size} bytes")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _ids(ids: Any) -> tuple[int, ...]:
    whole = isinstance(ids, list) and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids)
    _check(whole and len(set(ids)) == len(ids), "ids is no list of different whole numbers of 0 or more")
    return tuple(ids)


def _column(table: dict[str, Any], key: str, count: int, fits: Any, expected: str) -> list[Any]:
    """One value per image."""
    column = table[key]
    _check(isinstance(column, list) and len(column) == count, f"{shown(key)} is no list of {count}, one per image")
    wrong = next((row for row, value in enumerate(column) if not fits(value)), None)
    if wrong is not None:
        raise WireError(f"{shown(key)}, image {wrong}: {shown(column[wrong])} is not {expected}")
    return column


def _scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plain_map(value: Any) -> bool:
    return isinstance(value, dict) and _plain(value, DEEPEST)


def _plain(value: Any, depth: int) -> bool:
    """Whether it is what JSON can hold, in at most so many levels."""
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else ()
        inner = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(isinstance(key, str) for key in keys) and all(_plain(one, depth - 1) for one in inner)
    return _scalar(value)


def _check(right: bool, message: str) -> None:
    if not right:
        raise WireError(message)
