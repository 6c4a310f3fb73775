"""How many heaps the threads of a process have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

THREADS = """
import ctypes, sys, threading
from deploy.heap import share

if sys.argv[1] == "shared":
    share()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
all_here = threading.Barrier(9)

def take():
    libc.malloc(1000)
    all_here.wait()

for _ in range(8):
    threading.Thread(target=take).start()
all_here.wait()
file = ctypes.c_void_p(libc.fopen(b"heaps.xml", b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
@pytest.mark.parametrize(("word", "heaps"), [("shared", {2}), ("their own", {8, 9})])
def test_eight_threads_have(word, heaps, tmp_path):
    subprocess.run([sys.executable, "-c", THREADS, word], cwd=tmp_path, check=True, timeout=60)
    assert Path(tmp_path / "heaps.xml").read_text().count("<heap nr=") in heaps
