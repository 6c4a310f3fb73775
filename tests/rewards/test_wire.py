"""A reward's messages: what is written is read, and nothing else is, at no greater cost than its bytes."""

from __future__ import annotations

import math
import random
import tracemalloc
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
import strangers
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ddpo.types import Images, Scores
from rewards.wire import (
    WORDS,
    Description,
    Limits,
    WireError,
    pack_answer,
    pack_description,
    pack_request,
    unpack_answer,
    unpack_description,
    unpack_request,
)

LIMITS = Limits(images=8, side=32, bytes=10**6)
quickly = settings(max_examples=150, deadline=None, derandomize=True, database=None)

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ids = st.lists(st.integers(0, 2**63), min_size=1, max_size=8, unique=True)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | words
plain = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
                     max_leaves=6)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def requests(draw: Any) -> Images:
    named = draw(ids)
    shape = (len(named), draw(st.integers(1, 32)), draw(st.integers(1, 32)), 3)
    columns = (draw(st.lists(kind, min_size=len(named), max_size=len(named)))
               for kind in (words, st.dictionaries(words, plain, max_size=3)))
    text, metadata = columns
    return Images(tuple(named), tuple(text), tuple(metadata), draw(arrays.arrays(np.uint8, shape)))


@st.composite
def answers(draw: Any) -> Scores:
    named = draw(ids)
    given = {image: draw(numbers | words) for image in named}
    info = draw(st.dictionaries(words, st.lists(scalars, min_size=len(named), max_size=len(named)), max_size=3))
    return Scores(
        tuple(named), {image: value for image, value in given.items() if isinstance(value, float)},
        {image: value for image, value in given.items() if isinstance(value, str)}, info,
        {"score": draw(st.floats(0, 1e6))},
    )


def deep(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(deep, inner), default=0) if isinstance(value, dict | list) else 0


@quickly
@given(requests())
def test_a_request_arrives_as_it_was_sent(images):
    if max(map(deep, images.metadata)) > 8:
        return
    read = unpack_request(pack_request(images), LIMITS)
    assert (read.ids, read.text, read.metadata) == (images.ids, images.text, images.metadata)
    assert read.pixels_BYX3.dtype == np.uint8 and np.array_equal(read.pixels_BYX3, images.pixels_BYX3)


@quickly
@given(answers())
def test_an_answer_arrives_as_it_was_sent(scores):
    assert unpack_answer(pack_answer(scores), scores.ids) == scores


def test_a_description_arrives_as_it_was_sent():
    described = Description("llava", "alignment", 300.0, LIMITS)
    assert unpack_description(pack_description(described)) == described


GOOD_REQUEST = pack_request(strangers.images(2))
GOOD_ANSWER = pack_answer(Scores((0, 1), {0: 1.5}, {1: "too dark"}, {"word": ["a", None]}, {"score": 0.25}))


@quickly
@given(st.integers(0, 2**32))
def test_a_damaged_request_is_read_within_its_limits_or_refused(seed):
    try:
        images = unpack_request(strangers.damaged(GOOD_REQUEST, random.Random(seed)), LIMITS)
    except WireError:
        return
    count = len(images.ids)
    assert images.pixels_BYX3.shape == (count, 16, 16, 3) and len(images.text) == len(images.metadata) == count


@quickly
@given(st.integers(0, 2**32))
def test_a_damaged_answer_is_whole_and_finite_or_refused(seed):
    try:
        scores = unpack_answer(strangers.damaged(GOOD_ANSWER, random.Random(seed)), (0, 1))
    except WireError:
        return
    assert set(scores.values) | set(scores.failures) == {0, 1} and not set(scores.values) & set(scores.failures)
    assert all(math.isfinite(value) for value in scores.values.values())


@quickly
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(body):
    with pytest.raises(WireError):
        unpack_request(body, LIMITS)
    with pytest.raises(WireError):
        unpack_answer(body, (0, 1))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"values": [float("nan"), None]}, "'values', image 0: nan is not a finite number or nil"),
        ({"values": [float("-inf"), None]}, "-inf is not a finite number"),
        ({"values": [True, None]}, "True is not a finite number"),
        ({"values": ["1.5", None]}, "'1.5' is not a finite number"),
        ({"values": [1.5]}, "'values' is no list of 2, one per image"),
        ({"values": [1.5, 2.5]}, "exactly one of the two is nil"),
        ({"failures": [None, None]}, "exactly one of the two is nil"),
        ({"ids": [1, 0]}, "ids are not those of the request"),
        ({"ids": [False, True]}, "ids is no list"),
        ({"info": {"word": ["a"]}}, "'word' is no list of 2"),
        ({"info": {"word": ["a", [1]]}}, "is not a number, a text or nil"),
        ({"info": {"word": [b"a", None]}}, "is not a number, a text or nil"),
        ({"info": {1: ["a", "b"]}}, "int is not allowed for map key"),
        ({"seconds": float("nan")}, "seconds is no number"),
        ({"protocol": "ddpo-reward/2"}, "speaks protocol 'ddpo-reward/2', and this program 'ddpo-reward/1'"),
        ({"more": 1}, "has the keys"),
    ],
)
def test_an_answer_that_is_wrong_is_told_apart(changes, said):
    with pytest.raises(WireError, match=f".*{said}"):
        unpack_answer(msgpack.packb(msgpack.unpackb(GOOD_ANSWER) | changes), (0, 1))


def test_metadata_that_msgpack_cannot_hold_is_refused_before_it_is_sent():
    for metadata in ({"n": np.float32(1)}, {"n": 2**70}, {"n": {1, 2}}):
        with pytest.raises(WireError, match="cannot be written as msgpack"):
            pack_request(replace(strangers.images(1), metadata=(metadata,)))


EMPTY_MAPS = b"\xdc\x00\x80" + 128 * (b"\xdc\xff\xff" + 0xFFFF * b"\x80")  # as dictionaries 64 times as large
CLAIMS = b"\xdd\x00\xff\xff\xff" * 900 + b"\xc0" * 10**6  # lists in lists that claim 16 million entries each


def with_value(key: str, value: bytes, first: bool = False) -> bytes:
    """A good request but for one value, or for the first of its column, which is this msgpack."""
    table = msgpack.unpackb(GOOD_REQUEST)
    mark = b"a place that is replaced"
    place = table["pixels"] if key in table["pixels"] else table
    place[key] = [mark, *place[key][1:]] if first else mark
    return msgpack.packb(table).replace(msgpack.packb(mark), value)


@pytest.mark.parametrize("depth", [9, 100, 500, 900, 1000, 1100, 10_000])
@pytest.mark.parametrize("key", ["ids", "text", "metadata", "shape"])
def test_lists_in_lists_are_refused_however_deep(key, depth):
    for first in (False, True):
        with pytest.raises(WireError):
            unpack_request(with_value(key, b"\x91" * depth + b"\xc0", first), LIMITS)


@pytest.mark.parametrize("bomb", [EMPTY_MAPS, CLAIMS], ids=["empty maps", "claims"])
@pytest.mark.parametrize("key", ["metadata", "ids", "protocol", "pixels", "data"])
def test_a_bomb_costs_no_more_than_its_bytes(bomb, key):
    body = with_value(key, bomb)
    tracemalloc.start()
    with pytest.raises(WireError):
        unpack_request(body, Limits(bytes=2**26))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * len(body) + 2**22


def test_an_answer_has_a_limit_that_its_maker_meets_first():
    with pytest.raises(WireError, match="the limit is"):
        pack_answer(Scores((0,), {0: 1.0}, {}, {"caption": ["x" * WORDS]}, {}))
