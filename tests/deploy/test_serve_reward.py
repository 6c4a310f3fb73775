"""`ddpo serve-reward`, `ddpo check-reward` and runs that ask a server."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import strangers
from terminal import Started, result

from ddpo.config import RewardConfig
from ddpo.types import Scores
from rewards import remote
from rewards.worker import RewardWorker

TOKEN = "0123456789abcdef"


@pytest.fixture
def serve(start: Callable[..., Started], tmp_path: Path) -> Callable[..., tuple[str, Started]]:
    """serve(source, "--token-file", ...): a server of a user's file as a process; gives its address."""

    def begin(source: str, *words: str) -> tuple[str, Started]:
        (tmp_path / "far.py").write_text(source)
        started = start("serve-reward", "function", "path=far.py", "--port", "0", *words)
        for _ in range(600):
            if found := re.search(r"at (http://\S+);", started.terminal()):
                return found[1], started
            assert started.process.poll() is None, started.terminal()
            time.sleep(0.05)
        raise AssertionError(started.terminal())

    return begin


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compressibility", "--host", "0.0.0.0"], "lets other machines in, and without a token anybody may ask"),
        (["compressibility", "--token-file", "none"], "--token-file: cannot read a token from none"),
        (["compressibility", "--token-file", "short"], "a token is 16 or more ASCII letters"),
        (["compresibility"], 'did you mean "compressibility"?'),
        (["alignment", "path=x.py"], 'kind = "alignment" has no path'),
        (["alignment", "model=./none"], "there is no folder './none'"),
        (["compressibility", "gpus=1"], "gpus=1: a server has no such option; it belongs into the run"),
        (["function", "path=none.py"], "cannot read none.py"),
        (["compressibility", "--host", "192.0.2.1", "--token-file", "token"], "cannot listen there"),
    ],
)
def test_a_server_that_cannot_be_is_refused(ddpo, tmp_path, words, said):
    (tmp_path / "short").write_text("secret")
    (tmp_path / "token").write_text(TOKEN)
    answer = ddpo("serve-reward", *words)
    assert answer.code == 2 and said in answer.err and answer.out == ""


def test_a_run_that_asks_a_server_ends_with_the_same_weights(train, tmp_path):
    assert train("name=here").code == 0
    worker = RewardWorker("jpeg", RewardConfig(), "")
    (tmp_path / "token").write_text(TOKEN)
    with strangers.serving(worker, TOKEN) as (url, _):
        far = ["rewards.jpeg.kind=http", f"rewards.jpeg.url={url}", "rewards.jpeg.token_file=token"]
        answer = train("name=far", *far)
        refused = train("rewards.jpeg.kind=http", f"rewards.jpeg.url={url}")
    assert answer.code == 0, answer.err
    assert result(tmp_path / "runs" / "far")["lora_digest"] == result(tmp_path / "runs" / "here")["lora_digest"]
    assert TOKEN not in "".join(path.read_text(errors="replace") for path in (tmp_path / "runs" / "far").rglob("*.*"))
    assert refused.code == 2 and "rewards.jpeg.url: http://" in refused.err and "answers 401" in refused.err


def test_a_run_whose_server_is_gone_does_not_start(train, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PROBE", 0.2)
    answer = train("rewards.jpeg.kind=http", "rewards.jpeg.url=http://127.0.0.1:1")
    assert answer.code == 2 and "gave no answer within 0.2 s: it is not there" in answer.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("url", ["", "scorer:8000", "ftp://scorer", "http://", "http://me:secret@scorer", "http://x:y"])
def test_an_address_that_is_none(train, url):
    answer = train("rewards.jpeg.kind=http", f"rewards.jpeg.url={url}")
    assert answer.code == 2 and f'rewards.jpeg.url  "{url}" is no server; write its address' in answer.err


def test_a_server_finishes_what_it_has_in_hand(serve):
    url, started = serve(
        "import pathlib, time\ndef reward(i, p, m):\n    pathlib.Path('begun').touch()\n    time.sleep(0.5)\n"
        "    return [7.0] * len(i), {}\n"
    )
    got: list[Scores] = []
    worker = RewardWorker("far", RewardConfig(kind="http", url=url, timeout=20), "")
    asking = threading.Thread(target=lambda: got.append(worker.score(strangers.images(2))))
    asking.start()
    while not (started.log.parent / "begun").exists():
        time.sleep(0.01)
    started.signal(signal.SIGTERM)
    asking.join(20)
    assert started.process.wait(20) == 0
    assert got[0].values == {0: 7.0, 1: 7.0} and "Traceback" not in started.terminal()


def test_a_reward_that_hangs_is_stopped_there_and_the_server_goes_on(serve, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    url, started = serve(
        "import time\ndef reward(i, p, m):\n    time.sleep(0 if p[0] else 60)\n    return [1.0] * len(i), {}\n",
        "timeout=0.3", "--token-file", "token", "--images", "3",
    )
    assert "a token is needed" in started.terminal() and "A request: 3 images" in started.terminal()
    worker = RewardWorker("far", RewardConfig(kind="http", url=url, timeout=20), TOKEN)
    images = strangers.images(2)
    hung = worker.score(type(images)(images.ids, ("", ""), images.metadata, images.pixels_BYX3))
    assert hung.failures[1] == "reward 'far': reward 'function' failed: DeadlineError: reward 'function' took more " \
                               "than 0.3 s (far.py, line 3)"
    assert worker.score(images).values == {0: 1.0, 1: 1.0}
    assert "answers 400" in worker.score(strangers.images(4)).failures[0]


def test_check_reward_prints_a_line_a_check_and_counts(ddpo):
    with strangers.serving(RewardWorker("jpeg", RewardConfig(), "")) as (url, _):
        good = ddpo("check-reward", url)
        bad = ddpo("check-reward", url + "/elsewhere")
    assert good.code == 0 and "FAIL" not in good.out and "pass  refuses a pickle\n" in good.out
    assert good.out.endswith(f"{url} passes all 43 checks.\n")
    assert bad.code == 1 and bad.out.startswith("FAIL  GET /reward describes the reward: answers 404")
    assert "fails 1 of 1 checks" in bad.err
    assert ddpo("check-reward", "http://127.0.0.1:1").code == ddpo("check-reward", "scorer:8000").code == 2
