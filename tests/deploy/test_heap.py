"""Memory that is free but stuck between what is not."""

from __future__ import annotations

import subprocess
import sys

import pytest

HOLES = """
from pathlib import Path
from deploy.heap import trim

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

blocks = [bytes(60_000) for _ in range(2_000)]  # 120 MB, too small each for a mapping of its own
del blocks[:-1]  # the last one holds the end of the heap
before = resident()
trim()
print(before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_holes_in_the_heap_go_back_to_the_system():
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True, timeout=60)
    assert float(done.stdout) > 60
