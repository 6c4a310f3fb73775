"""Weights on the wire: exact there and back, and anything else refused."""

from __future__ import annotations

import dataclasses

import msgpack
import numpy as np
import pytest

from ddpo.errors import DeliveryError
from ddpo.weights import digest, pack, read, unpack

WEIGHTS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array([1e-30, -0.0], np.float32)}


def test_there_and_back_bit_for_bit():
    policy = pack(WEIGHTS, 7)
    arrived = unpack(read(policy.message))
    assert arrived.keys() == WEIGHTS.keys() and policy.version == 7
    assert all(arrived[name].tobytes() == WEIGHTS[name].tobytes() for name in WEIGHTS)


def test_digest_sees_every_bit_name_and_shape():
    changed = {**WEIGHTS, "a": np.array([1e-30, 0.0], np.float32)}  # only the sign of a zero
    renamed = {"c": WEIGHTS["a"], "b": WEIGHTS["b"]}
    reshaped = {**WEIGHTS, "b": WEIGHTS["b"].reshape(3, 2)}
    assert len({digest(weights) for weights in (WEIGHTS, changed, renamed, reshaped)}) == 4
    assert digest(WEIGHTS) == digest(dict(reversed(WEIGHTS.items())))


def test_a_flipped_bit_is_refused():
    message = bytearray(pack(WEIGHTS, 1).message)
    message[-1] ^= 1
    with pytest.raises(DeliveryError, match="digest"):
        read(bytes(message))


def test_another_version_or_digest_is_refused():
    policy = pack(WEIGHTS, 1)
    with pytest.raises(DeliveryError, match="version 1"):
        unpack(dataclasses.replace(policy, version=2))
    with pytest.raises(DeliveryError, match="was sent"):
        unpack(dataclasses.replace(policy, digest="0" * 64))


@pytest.mark.parametrize(
    "tensors",
    [
        [["a", "float32", [3], b"1234"]],
        [["a", "float64", [1], b"12345678"]],
        [["a", "float32", [-1], b""]],
        [["a", "float32", "x", b""]],
        ["a"],
    ],
)
def test_tensors_that_are_not_what_they_declare_are_refused(tensors):
    table = {"format": "ddpo-policy/1", "version": 1, "digest": "x", "tensors": tensors}
    with pytest.raises(DeliveryError):
        read(msgpack.packb(table))


@pytest.mark.parametrize("message", [b"", b"\xc1", msgpack.packb([1]), msgpack.packb({"format": "other"})])
def test_messages_that_are_none_are_refused(message):
    with pytest.raises(DeliveryError):
        read(message)


def test_a_foreign_format_is_named():
    with pytest.raises(DeliveryError, match="ddpo-policy/9"):
        read(msgpack.packb({"format": "ddpo-policy/9", "version": 1, "digest": "", "tensors": []}))
