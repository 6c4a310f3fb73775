"""How many heaps malloc has; waits for nothing.

glibc gives every thread that allocates a heap of its own, up to eight a core, and each keeps the most that it ever
held, in pieces. Ray's threads in a driver are many, and messages of all sizes go through them, so that its resident
memory grows for thousands of steps (docs/reliability.md). Heaps that threads share are full of what is used.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

M_ARENA_MAX = -8  # in malloc.h


def share(heaps: int = 2) -> None:
    """Let all threads to come share so many; does nothing where the C library is not glibc."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, heaps)
