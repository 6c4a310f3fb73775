"""A fuzzer of both ends of a reward over HTTP: python tests/fuzz/http_reward.py --minutes 30 --seed 0

The server is the real one in a process of its own. Every round is made from (seed, round) alone, so `--only ROUND`
repeats one. What must hold: the server answers damaged messages and damaged HTTP with an error or hangs up, never with
500 or more, and scores a good request rightly afterwards; its memory levels off; the client, answered by damaged
HTTP, ends in scores, masked images or a RewardError, and neither hangs.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import strangers  # noqa: E402

from ddpo.config import RewardConfig  # noqa: E402
from ddpo.errors import RewardError  # noqa: E402
from ddpo.types import Scores  # noqa: E402
from rewards import remote  # noqa: E402
from rewards.conformance import Caller, Reply  # noqa: E402
from rewards.wire import (  # noqa: E402
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
from rewards.worker import RewardWorker  # noqa: E402

TOKEN = "0123456789abcdef"
IMAGES = strangers.images(3)
GOOD = pack_request(IMAGES)
HANGS = 60  # seconds for one round, which has under a second to wait: generous, since a busy machine starves processes
MESSAGES = 20  # damaged messages of each kind in one round: they cost little
DESCRIPTION = pack_description(Description("x", "alignment", 120.0, Limits()))
ANSWER = pack_answer(Scores((0, 1, 2), {0: 1.0, 2: 3.0}, {1: "too dark"}, {"word": ["a", None, "c"]}, {"score": 0.1}))
HEADERS = (
    "Content-Length: 5", "Content-Length: -1", "Content-Length: 99999999999999999999", "Transfer-Encoding: chunked",
    "Content-Encoding: gzip", "Content-Type: text/plain", "Expect: 100-continue", "Connection: upgrade",
    "Upgrade: websocket", "Host:", ": x", "X: " + "y" * 9000, "Authorization: Bearer", "X\0: y", "Connection: close",
)


@contextmanager
def served() -> Iterator[tuple[str, psutil.Process]]:
    """The server as a user starts it."""
    with tempfile.TemporaryDirectory() as folder:
        token, log = Path(folder, "token"), Path(folder, "log")
        token.write_text(TOKEN)
        words = ["serve-reward", "incompressibility", "--port", "0", "--token-file", str(token)]
        with log.open("wb") as out:
            process = subprocess.Popen([sys.executable, "-m", "deploy", *words], cwd=ROOT, stderr=out)
        try:
            while not (found := re.search(r"at (http://\S+);", log.read_text())):
                time.sleep(0.05)
            yield found[1], psutil.Process(process.pid)
            process.terminate()
            assert process.wait(30) == 0, log.read_text()
            said = [line for line in log.read_text().splitlines()[3:] if line]
            assert not said, f"the server complained: {said[:5]}"
        finally:
            process.kill()


def messages(rng: random.Random) -> str:
    """Decoders, without HTTP: scores or images that hold what they promise, or WireError."""
    readable = 0
    for _ in range(MESSAGES):
        with contextlib.suppress(WireError):
            images = unpack_request(strangers.damaged(GOOD, rng), Limits())
            readable += images.pixels_BYX3.shape == (len(images.ids), 16, 16, 3)
        with contextlib.suppress(WireError):
            scores = unpack_answer(strangers.damaged(ANSWER, rng), (0, 1, 2))
            readable += set(scores.values) ^ set(scores.failures) == {0, 1, 2}
        with contextlib.suppress(WireError):
            unpack_description(strangers.damaged(DESCRIPTION, rng))
            readable += 1
    return f"{3 * MESSAGES} messages, {'some of them readable' if readable else 'all refused'}"


def body(rng: random.Random, url: str) -> str:
    """A damaged body in good HTTP."""
    reply = Caller(url, TOKEN).ask("POST", "/score", strangers.damaged(GOOD, rng))
    assert reply.status in (200, 400), reply
    return f"body {reply.status}"


def raw(rng: random.Random, url: str) -> str:
    """Damaged HTTP, whole or in pieces, ended or left hanging."""
    head = [f"POST /score HTTP/1.{rng.choice('0119')}", "Host: x", "Content-Type: application/msgpack",
            f"Authorization: Bearer {TOKEN}", f"Content-Length: {len(GOOD)}"]
    for _ in range(rng.randint(0, 3)):
        head.insert(rng.randint(0, len(head)), rng.choice(HEADERS))
    if rng.random() < 0.3:
        head.pop(rng.randrange(len(head)))
    payload = _chunked(rng) if "Transfer-Encoding: chunked" in head else GOOD
    sent = ("\r\n".join(head) + "\r\n\r\n").encode() + payload
    sent = strangers.damaged(sent, rng) if rng.random() < 0.7 else sent
    reply = _exchange(url, [sent[i : i + 4000] for i in range(0, len(sent), 4000)] or [b""], rng.random() < 0.5)
    assert reply.status < 500, reply
    return f"raw {reply.status}"


def _chunked(rng: random.Random) -> bytes:
    sizes = [rng.randint(1, 2000) for _ in range(20)]
    parts, at = [], 0
    for size in sizes:
        piece = GOOD[at : at + size]
        parts.append(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        at += size
    return b"".join(parts)


def _exchange(url: str, parts: list[bytes], end: bool) -> Reply:
    parts_of = urlsplit(url)
    with socket.create_connection((str(parts_of.hostname), parts_of.port), timeout=20) as connection:
        with contextlib.suppress(OSError):
            for part in parts:
                connection.sendall(part)
            if end:
                connection.shutdown(socket.SHUT_WR)
        connection.settimeout(0.3)  # a request that the server still waits for is left hanging: it has a deadline
        try:
            first = connection.recv(2**16)
        except OSError:
            return Reply(0)
    found = re.match(rb"HTTP/1\.\d (\d{3})", first)
    return Reply(int(found[1]) if found else 0, "", first[:300])


def answer(rng: random.Random, start: Callable[[bytes], str]) -> str:
    """A damaged answer for the client."""
    status = rng.choice((200, 200, 200, 200, 422, 500, 401, 302))
    more = rng.choice(("", "", "Transfer-Encoding: chunked\r\n", "Content-Encoding: gzip\r\n", "Retry-After: 1e9\r\n"))
    response = strangers.answer(status, strangers.damaged(ANSWER, rng) if rng.random() < 0.5 else ANSWER, more=more)
    response = strangers.damaged(response, rng) if rng.random() < 0.5 else response
    worker = RewardWorker("far", RewardConfig(kind="http", url=start(response), timeout=0.5), "")
    try:
        scores = worker.score(IMAGES)
    except RewardError:
        outcome = "stopped"
    else:
        assert set(scores.values) ^ set(scores.failures) == {0, 1, 2}, scores
        outcome = "scored" if scores.values else "masked"
    return f"answer {outcome}"


@contextmanager
def answering() -> Iterator[Callable[[bytes], str]]:
    """A server that gives the answer it was last told to give."""
    current = [b""]

    def tell(response: bytes) -> str:
        current[0] = response
        return url

    with strangers.server(lambda connection, number: connection.sendall(current[0])) as url:
        yield tell


def main() -> int:
    """Fuzz until time is up; the exit code says whether all held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="repeat one round")
    options = parser.parse_args()
    remote._pause = lambda tries: 0.01
    counts: Counter[str] = Counter()
    with served() as (url, process), answering() as tell:
        expected = _good(url)
        begin, memory, number = time.monotonic(), [], options.only or 0
        while time.monotonic() - begin < 60 * options.minutes:
            rng = random.Random(f"{options.seed}:{number}")
            kind = rng.choice((lambda r: messages(r), lambda r: body(r, url), lambda r: raw(r, url),
                               lambda r: answer(r, tell)))
            faulthandler.dump_traceback_later(HANGS, exit=True)
            try:
                counts[kind(rng)] += 1
                if number % 200 == 0 or options.only is not None:
                    assert _good(url) == expected, "a good request is scored otherwise than before"
                    memory.append(process.memory_info().rss / 2**20)
            except Exception:
                traceback.print_exc()
                print(f"round {number} of seed {options.seed} failed; again: --seed {options.seed} --only {number}")
                return 1
            if options.only is not None:
                break
            number += 1
        faulthandler.cancel_dump_traceback_later()
        assert _good(url) == expected
    print(f"{sum(counts.values())} rounds in {(time.monotonic() - begin) / 60:.1f} minutes, seed {options.seed}")
    print("\n".join(f"  {count:8d}  {name}" for name, count in sorted(counts.items())))
    quarters = [f"{memory[quarter * (len(memory) - 1) // 4]:.0f}" for quarter in range(5)]
    print(f"server's memory at the start and after each quarter: {', '.join(quarters)} MB")
    return 0


def _good(url: str) -> dict[int, float]:
    reply = Caller(url, TOKEN).ask("POST", "/score", GOOD)
    assert reply.status == 200, reply
    return dict(unpack_answer(reply.content, (0, 1, 2)).values)


if __name__ == "__main__":
    sys.exit(main())
