"""A reward behind HTTP: served, asked, and everything between the two that can go wrong."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import strangers
from hypothesis import given, settings
from hypothesis import strategies as st
from strangers import serving

from ddpo.config import RewardConfig
from ddpo.errors import ContractError, RewardError, ServerError
from ddpo.types import Scores
from rewards import remote, serve
from rewards.conformance import Caller, conformance
from rewards.pool import sources
from rewards.wire import pack_answer, pack_request, unpack_answer
from rewards.worker import RewardWorker

TOKEN = "0123456789abcdef"
MEANS = "def reward(i, p, m): return [float(x.mean()) for x in i], {'word': p}"
IMAGES = strangers.images(3)
Serve = Callable[..., str]


def reward(source: str = MEANS, **options: object) -> RewardWorker:
    return RewardWorker("mine", RewardConfig(kind="function", path="/nowhere/mine.py", **options), source)


def client(url: str, token: str = "", **options: object) -> RewardWorker:
    return RewardWorker("far", RewardConfig(kind="http", url=url, **{"timeout": 5.0, **options}), token)


@pytest.fixture(scope="module")
def start() -> Iterator[Serve]:
    """start(worker, token=""): a server that is stopped in the end; gives its address."""
    with ExitStack() as stack:
        yield lambda worker, token="": stack.enter_context(serving(worker, token))[0]


@pytest.fixture(scope="module")
def url(start: Serve) -> str:
    """A good server without a token."""
    return start(reward())


@pytest.fixture
def swift(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between tries."""
    monkeypatch.setattr(remote, "_pause", lambda tries: 0.01)


def ask(url: str, seconds: float) -> list[Scores]:
    """The client alone, without the alarm of a worker's deadline, which may come first on a busy machine."""
    return asyncio.run(remote.Server(url, "").score([IMAGES], seconds))


# Good answers.


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 100])
def test_the_same_scores_as_here_whole_or_in_parts(url, batch):
    here, far = reward().score(IMAGES), client(url, batch=batch).score(IMAGES)
    assert far.values == here.values and far.info == here.info and far.failures == {}


def test_what_has_no_score_there_has_none_here_with_its_reason(start):
    source = "def reward(i, p, m): return [None, 2, None], {'missing': ['too dark', None, None], 'x': [1, 2, 3]}"
    far = client(start(reward(source))).score(IMAGES)
    assert far.values == {1: 2.0} and far.info == {"x": [1, 2, 3]}
    assert far.failures == {0: "reward 'far': reward 'mine': too dark",
                            2: "reward 'far': reward 'mine': gave None, that is no score"}


def test_a_reward_that_raises_there_masks_its_images_here(start):
    far = client(start(reward("def reward(i, p, m): raise OSError('no GPU')"))).score(IMAGES)
    assert far.values == {} and "reward 'mine' failed: OSError: no GPU" in far.failures[2]


@pytest.mark.parametrize("answer", ["[1.0, 2.0, float('nan')], {}", "[1.0], {}"])
def test_a_reward_that_breaks_its_contract_there_stops_the_run_here(start, answer):
    url = start(reward(f"def reward(i, p, m): return {answer}"))
    with pytest.raises(RewardError, match=r"reward 'far': http://.* answers 422: reward 'mine' returned"):
        client(url).score(IMAGES)


def test_the_token_opens_and_nothing_else_does(start):
    url = start(reward(), TOKEN)
    assert client(url, TOKEN).score(IMAGES).failures == {}
    for wrong in ("", TOKEN + "x", TOKEN[:-1]):
        assert "answers 401" in client(url, wrong).score(IMAGES).failures[0]


def test_a_token_comes_from_a_file_or_the_environment(make_run, tmp_path, monkeypatch):
    (tmp_path / "token").write_text(TOKEN + "\n")
    run = make_run("rewards.a={kind='http', url='http://a', token_file='%s'}" % (tmp_path / "token"),
                   "rewards.b={kind='http', url='http://b'}")
    monkeypatch.setenv("DDPO_REWARD_TOKEN", "x" * 20)
    assert sources(run) == {"jpeg": "", "a": TOKEN, "b": "x" * 20}


# The server, asked wrongly.


def test_our_own_server_passes_its_own_test(start):
    outcome = dict(conformance(start(reward(), TOKEN), TOKEN))
    assert len(outcome) > 40 and set(outcome.values()) == {""}


def test_the_test_finds_a_server_that_believes_everything(start, monkeypatch):
    monkeypatch.setattr(serve, "unpack_request", lambda body, limits: IMAGES)
    outcome = dict(conformance(start(reward()), TOKEN))
    assert outcome["no token at /score is 401"].startswith("answers 200")
    assert outcome["refuses a pickle"].startswith("answers 200") and "not those of the request" in outcome[
        "scores a batch of one"
    ]
    assert outcome["ends a body that comes byte by byte"] == outcome["GET /health answers 200"] == ""


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**32))
def test_a_damaged_body_is_scored_or_refused_and_never_fatal(url, seed):
    body = strangers.damaged(pack_request(IMAGES), random.Random(seed))
    assert Caller(url, "").ask("POST", "/score", body).status in (200, 400)


class Gate:
    """A reward that waits until it is let go."""

    def __init__(self) -> None:
        self.go, self.calls = threading.Event(), 0

    def __call__(self, images: object, prompts: object, metadata: object) -> tuple[list[int], dict[str, object]]:
        self.calls += 1
        assert self.go.wait(10)
        return [1] * 3, {}


def eventually(true: Callable[[], bool]) -> bool:
    """Whether it becomes true within five seconds."""
    return any(true() or time.sleep(0.01) for _ in range(500))


def test_more_than_there_is_room_for_is_sent_away_and_comes_back(swift):
    worker, gate, results = reward(), Gate(), []
    worker.reward = gate
    threads = [threading.Thread(target=lambda: results.append(client(url).score(IMAGES))) for _ in range(4)]
    with serving(worker, room=2) as (url, service):
        for thread in threads:
            thread.start()
        assert eventually(lambda: service.waiting == 2)
        full = Caller(url, "").ask("POST", "/score", pack_request(IMAGES))
        assert full.status == 503 and full.content == b"2 requests are waiting; try again"
        assert Caller(url, "").ask("GET", "/health").status == 200
        gate.go.set()
        for thread in threads:
            thread.join(10)
    assert [scores.values for scores in results] == [{0: 1.0, 1: 1.0, 2: 1.0}] * 4 and gate.calls == 4


def test_what_nobody_waits_for_any_more_is_not_scored():
    worker, gate = reward(), Gate()
    worker.reward = gate
    with serving(worker) as (url, service):
        first = threading.Thread(target=lambda: client(url).score(IMAGES))
        first.start()
        assert eventually(lambda: gate.calls == 1)
        with pytest.raises(ServerError, match="gave no answer"):
            ask(url, 0.1)
        assert eventually(lambda: service.waiting == 1)
        gate.go.set()
        first.join(10)
    assert gate.calls == 1


def test_a_stuck_reward_shows_in_its_health(monkeypatch):
    worker, gate = reward(timeout=0.1), Gate()
    worker.reward = gate
    monkeypatch.setattr(serve, "GRACE", 0.1)
    with serving(worker, room=1) as (url, _):
        reply = Caller(url, "").ask("POST", "/score", pack_request(IMAGES))
        assert reply.status == 504 and b"no score within 0.2 s" in reply.content
        assert eventually(lambda: Caller(url, "").ask("GET", "/health").status == 503)
        gate.go.set()


# The client, answered wrongly.


def failures(url: str, **options: object) -> str:
    scores = client(url, **options).score(IMAGES)
    assert scores.values == {} and len(set(scores.failures.values())) == 1
    return scores.failures[0]


GOOD = pack_answer(Scores((0, 1, 2), {0: 1.0, 1: 2.0, 2: 3.0}, {}, {}, {"score": 0.1}))
BUSY = strangers.answer(503, b"busy", "text/plain")


def test_a_server_that_is_not_there_is_asked_until_time_is_up(swift):
    with strangers.server(strangers.always(b"")) as gone:
        pass
    with pytest.raises(ServerError, match=r"gave no answer within 0.5 s: it is not there: .* tr"):
        ask(gone, 0.5)


def test_a_busy_server_is_asked_again_and_its_wish_is_respected(swift):
    times: list[float] = []

    def script(connection, number):
        times.append(time.monotonic())
        connection.sendall(strangers.answer(503, more="Retry-After: 1\r\n") if number == 0 else
                           BUSY if number < 3 else strangers.answer(200, GOOD))

    with strangers.server(script) as url:
        assert client(url).score(IMAGES).values == {0: 1.0, 1: 2.0, 2: 3.0}
    assert len(times) == 4 and times[1] - times[0] >= 1 and times[3] - times[1] < 1


def test_a_connection_that_breaks_is_tried_thrice(swift):
    asked: list[int] = []
    with strangers.server(lambda connection, number: asked.append(number)) as url:
        assert "the connection broke: Server disconnected (3 tries)" in failures(url)
    assert asked == [0, 1, 2]


def test_an_answer_that_is_cut_short_is_no_answer(swift):
    with strangers.server(strangers.always(strangers.answer(200, GOOD)[:-5])) as url:
        assert "the connection broke" in failures(url)


@pytest.mark.parametrize("head", [b"", strangers.answer(200, GOOD)[:40], strangers.answer(200, GOOD)[:-60]])
def test_a_server_that_drips_is_cut_off_in_total(head):
    def drip(connection, number):
        connection.sendall(head)
        for byte in strangers.answer(200, GOOD)[len(head) : len(head) + 50]:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)

    begin = time.monotonic()
    said = r"gave no answer within 0.3 s: it was asked and said nothing"
    with strangers.server(drip) as url, pytest.raises(ServerError, match=said):
        ask(url, 0.3)
    assert time.monotonic() - begin < 2


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (strangers.answer(500, b"CUDA out of memory\n\x1b[2J", "text/plain"), "answers 500: CUDA out of memory [2J"),
        (strangers.answer(401), "Its token comes from token_file, or DDPO_REWARD_TOKEN"),
        (strangers.answer(302, more="Location: http://127.0.0.1:1/\r\n"), "answers 302"),
        (strangers.answer(413, b"too large"), "answers 413: too large"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "does not speak HTTP"),
    ],
)
def test_an_error_masks_the_images_with_what_the_server_said(response, said):
    with strangers.server(strangers.always(response)) as url:
        assert said in failures(url)


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (strangers.answer(200, b"<html>", "text/html"), "answers 200: <html> \\(text/html, not application/msgpack\\)"),
        (strangers.answer(200, b"x"), "is not one of the protocol"),
        (strangers.answer(200, GOOD.replace(b"reward/1", b"reward/2")), "speaks protocol 'ddpo-reward/2'"),
        (strangers.answer(200, GOOD.replace(b"\xcb\x40\x08", b"\xcb\x7f\xf8")), "nan is not a finite number"),
        (strangers.answer(200, GOOD.replace(b"\x93\0\1\2", b"\x93\2\1\0")), "not those of the request"),
        (strangers.answer(200, b"\0" * (5 * 2**20)), "is longer than 4194304 bytes"),
        (strangers.answer(200, b"x", more="Content-Encoding: gzip\r\n"), "is not one of the protocol"),
        (strangers.answer(422, b"3 scores for 2 images"), "answers 422: 3 scores for 2 images"),
    ],
)
def test_an_answer_that_breaks_the_protocol_stops_the_run(response, said):
    match = f"reward 'far': .*{said}"
    with strangers.server(strangers.always(response)) as url, pytest.raises(ContractError, match=match):
        client(url).score(IMAGES)


def test_damaged_answers_are_scores_failures_or_our_own_error(swift):
    whole = strangers.answer(200, GOOD)
    script = lambda connection, number: connection.sendall(strangers.damaged(whole, random.Random(number)))  # noqa: E731
    with strangers.server(script) as url:
        worker = client(url, timeout=0.3)
        for _ in range(60):
            try:
                scores = worker.score(IMAGES)
            except RewardError:
                continue
            assert set(scores.values) ^ set(scores.failures) == {0, 1, 2}
            assert all(np.isfinite(value) for value in scores.values.values())


def test_metadata_that_cannot_be_sent_masks(url):
    odd = replace(IMAGES, metadata=({"n": np.float32(1)},) * 3)
    assert "WireError: cannot be written as msgpack" in client(url).score(odd).failures[0]


# Before a run starts.


def complaint(run, side: int = 16, token: str = "") -> str:
    with pytest.raises(remote.InputError) as caught:
        remote.reach(run, {"jpeg": token}, side)
    return str(caught.value)


@pytest.fixture
def asking(make_run) -> Callable[..., object]:
    return lambda url, *words: make_run("rewards.jpeg.kind=http", f"rewards.jpeg.url={url}", *words)


def test_a_server_is_looked_for_before_a_run_starts(asking, start, url, swift, monkeypatch):
    monkeypatch.setattr(remote, "PROBE", 0.2)
    remote.reach(asking(url), {"jpeg": ""}, 16)
    assert "rewards.jpeg.url: http://127.0.0.1:1 gave no answer within 0.2 s" in complaint(asking("http://127.0.0.1:1"))
    assert "answers 401" in complaint(asking(start(reward(), TOKEN)), token="x")
    page = strangers.answer(200, b"<html>", "text/html")
    with strangers.server(strangers.always(page)) as other:
        assert "Is it a reward's server?" in complaint(asking(other))


def test_a_run_that_asks_too_much_of_a_server_does_not_start(asking, url):
    many = asking(url, "actors.batch=32", "learner.images_per_step=32", "learner.minibatch=32")
    assert "rewards.jpeg.batch: a request would have 32 images" in complaint(many)
    assert "takes pictures of 128 pixels at most, the model draws 512" in complaint(asking(url), side=512)
    assert len(unpack_answer(GOOD, (0, 1, 2)).values) == 3
