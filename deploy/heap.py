"""What malloc keeps free goes back to the system; waits for nothing.

glibc gives back only the end of a heap. A driver takes and frees messages of many sizes in several threads, so that the
holes between what stays grow for as long as it runs.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress


def trim() -> None:
    """Give whole free pages of all heaps back; does nothing where the C library is not glibc."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
