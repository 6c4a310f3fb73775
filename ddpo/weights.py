"""Trainable weights on the wire: one msgpack message with declared names, dtypes and shapes, a version and a digest.

Consumes named fp32 arrays, produces a `Policy` and back. Nothing is unpickled; a message that is not exactly what it
declares is refused (ddpo.errors.DeliveryError).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import msgpack
import numpy as np
from numpy.typing import NDArray

from ddpo.errors import DeliveryError
from ddpo.types import Policy

Weights = Mapping[str, NDArray[np.float32]]

FORMAT = "ddpo-policy/1"
LARGEST_MESSAGE = 16 * 2**30


def digest(weights: Weights) -> str:
    """sha256 over names, shapes and bytes in the order of names: equal digests mean equal weights, bit for bit."""
    state = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name], dtype=np.float32)
        state.update(f"{name}:{array.shape}\n".encode())
        state.update(array.tobytes())
    return state.hexdigest()


def pack(weights: Weights, version: int) -> Policy:
    """Encode the weights; `version` counts the steps of the learner that made them."""
    tensors = [
        [name, "float32", list(weights[name].shape), np.ascontiguousarray(weights[name], np.float32).tobytes()]
        for name in sorted(weights)
    ]
    mark = digest(weights)
    header = {"format": FORMAT, "version": version, "digest": mark, "tensors": tensors}
    return Policy(version, mark, bytes(msgpack.packb(header, use_bin_type=True) or b""))


def unpack(policy: Policy) -> dict[str, NDArray[np.float32]]:
    """Decode a message and prove it: format, version, every size, and the digest of what arrived."""
    table = _decode(policy.message)
    if table["version"] != policy.version or table["digest"] != policy.digest:
        raise DeliveryError(
            f"a message of weights says version {table['version']}, digest {str(table['digest'])[:12]}, but was sent "
            f"as version {policy.version}, digest {policy.digest[:12]}; it is not used."
        )
    weights = dict(_tensor(entry) for entry in table["tensors"])
    if digest(weights) != policy.digest:
        raise DeliveryError(f"the weights of version {policy.version} do not have the digest they were sent with.")
    return weights


def read(message: bytes) -> Policy:
    """A message from disk as a Policy, proven by `unpack`."""
    table = _decode(message)
    policy = Policy(table["version"], table["digest"], message)
    unpack(policy)
    return policy


def _decode(message: bytes) -> dict:
    if len(message) > LARGEST_MESSAGE:
        raise DeliveryError(f"a message of weights has {len(message)} bytes; the limit is {LARGEST_MESSAGE}.")
    try:
        table = msgpack.unpackb(message, raw=False, max_bin_len=LARGEST_MESSAGE)
    except (ValueError, msgpack.UnpackException) as error:
        raise DeliveryError(f"a message of weights is damaged: {error}.") from None
    expected = {"format": str, "version": int, "digest": str, "tensors": list}
    if not isinstance(table, dict) or any(not isinstance(table.get(key), kind) for key, kind in expected.items()):
        raise DeliveryError("a message of weights lacks format, version, digest or tensors.")
    if table["format"] != FORMAT:
        raise DeliveryError(f"a message of weights has format {table['format']!r}; this program reads {FORMAT!r}.")
    return table


def _tensor(entry: object) -> tuple[str, NDArray[np.float32]]:
    match entry:
        case [str(name), "float32", [*shape], bytes(data)] if all(isinstance(n, int) and n >= 0 for n in shape):
            if math.prod(shape) * 4 == len(data):
                return name, np.frombuffer(data, np.float32).reshape(shape)
            raise DeliveryError(f"tensor {name} declares shape {shape} and brings {len(data)} bytes.")
    raise DeliveryError("a message of weights holds something that is no [name, float32, shape, bytes].")
