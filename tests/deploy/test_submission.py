"""Runs as jobs: submitted, followed, steered, stopped and gone on with over the dashboard's address alone; and what a
person is told who has no token, a wrong one, no cluster or another cluster's versions."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from terminal import Answer, metrics

from ddpo.errors import InputError
from ddpo.pool import State
from ddpo.source import ROOT
from deploy.jobs import mailbox, steer, submission

TOKEN = "0123456789abcdef" * 4
PATIENCE = 400.0
RELAY = """
import asyncio, sys

async def pump(source, drain):
    while data := await source.read(65536):
        drain.write(data)
    drain.close()

async def join(reader, writer):
    far, there = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
    await asyncio.gather(pump(reader, there), pump(far, writer), return_exceptions=True)

async def main():
    async with await asyncio.start_server(join, "127.0.0.1", int(sys.argv[1])) as server:
        await server.serve_forever()

asyncio.run(main())
"""
FOLLOW = """
import sys
from deploy.jobs import following, submission

client = submission.connect(sys.argv[1])
job = client.submit_job(entrypoint="for n in 1 2 3 4 5 6; do echo line $n; sleep 1; done; exit 3")
sys.exit(following.follow(client, job))
"""


TWINS = """
import sys, time, ray
from ddpo.control import ControlThread
from ddpo.errors import DdpoError
from deploy.cluster import visiting
from deploy.jobs import mailbox

def says(run, text, lost=None):
    try:
        return mailbox.status(run).startswith(f"{run}: {text}") and mailbox._find(run)._actor_id != lost
    except DdpoError:
        return False

with visiting(sys.argv[1]):
    control = ControlThread()
    for run, text in (("twin", "the first"), ("twin-2", "the second")):
        control.spawn(mailbox.mind("twin", {}, lambda states, text=text: text))
        while not says(run, text):
            time.sleep(0.2)
    box = mailbox._find("twin")
    ray.kill(box)
    while not says("twin", "the first", box._actor_id):
        time.sleep(0.2)
    print("ready", flush=True)
    sys.stdin.read()
    control.close()
"""
RUNNING = """
from deploy.jobs import submission
jobs = [job for job in submission.connect({url!r}).list_jobs() if job.submission_id]
print([job.submission_id for job in jobs if not job.status.is_terminal()])
"""


@dataclass(frozen=True)
class Cluster:
    """url: of its dashboard; head: where its machines join; runs: where its jobs keep them"""

    url: str
    head: str
    runs: Path


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster as somebody starts it, with a token."""
    parts, url, port = tempfile.mkdtemp(prefix="ray"), f"127.0.0.1:{free_port()}", str(free_port())
    words = ["start", "--head", "--block", "--temp-dir", parts, "--port", port, "--num-cpus", "5",
             "--dashboard-host", "127.0.0.1", "--dashboard-port", url.rpartition(":")[2], "--object-store-memory",
             "100000000", "--ray-client-server-port", str(free_port()), "--dashboard-agent-listen-port",
             str(free_port()), "--disable-usage-stats"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN,
                   "DDPO_RUNS": str(tmp_path_factory.mktemp("runs"))}
    command = [sys.executable, "-m", "ray.scripts.scripts", *words]
    with (Path(parts) / "head.txt").open("wb") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_for(lambda: _open(url), "the dashboard")
        yield Cluster(f"http://{url}", f"127.0.0.1:{port}", Path(environment["DDPO_RUNS"]))
    finally:
        head.terminate()
        head.wait(60)
        shutil.rmtree(parts, ignore_errors=True)


def _open(url: str) -> bool:
    host, _, port = url.rpartition(":")
    with socket.socket() as door:
        return door.connect_ex((host, int(port))) == 0


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"no {what} after {PATIENCE:g} s"
        time.sleep(0.2)


def far(*words: str, **settings: str) -> Answer:
    """A command at a terminal that knows the cluster's token and nothing else of it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, **settings}
    done = subprocess.run(
        [sys.executable, "-m", "deploy", *words], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def python(code: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True, timeout=60, check=False
    )


def watched_until(end: signal.Signals, url: str, environment: dict[str, str], said: Path) -> None:
    """`ddpo status twin --watch` from afar, ended by a signal as soon as it has said something."""
    watch = [sys.executable, "-m", "deploy", "status", "twin", "--watch"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which is ignored by what runs in the background
    with said.open("wb") as out, subprocess.Popen(
        watch, cwd=ROOT, env=environment | {"RAY_ADDRESS": url}, stdout=out, preexec_fn=heard
    ) as command:
        try:
            wait_for(lambda: said.read_text().startswith("twin: the first"), "status")
            command.send_signal(end)
            assert command.wait(60) == 130
        finally:
            command.kill()


@pytest.mark.ray
def test_a_run_is_submitted_steered_stopped_and_gone_on_with(there, model):
    at = ["--address", there.url]
    facts = {"policy.base": str(model), "policy.steps": "5", "actors.batch": "4", "actors.count": "1", "name": "far",
             "learner.images_per_step": "8", "learner.minibatch": "4", "learner.micro_batch": "4",
             "learner.window": "[0,5]", "advantage.min_count": "4", "prompts.items": '["a cat"]',
             "checkpoints.every": "1"}
    words = ["demo", *(f"{key}={value}" for key, value in facts.items())]
    submitted = far("submit", *words, "steps=100000", *at)
    assert submitted.code == 0 and "Submitted far as job far-" in submitted.err and submitted.out == ""
    wait_for((there.runs / "far" / "metrics.jsonl").exists, "first step")
    status = far("status", "far", *at)
    assert status.code == 0 and re.match(r"far: step \d+/100000; .*reward ", status.out)
    assert "samplers        1" in status.out
    scaled = far("scale", "far", "jpeg=2", *at)
    assert scaled.code == 0 and "2..2" in scaled.out
    again = far("submit", *words, *at)
    assert again.code == 2 and "run 'far' is on the cluster already, as job far-" in again.err
    stopped = far("stop", "far", *at)
    assert stopped.code == 0 and "far ends after the step in hand" in stopped.out
    followed = far("logs", "far", "--follow", *at)
    assert followed.code == 0 and "stopped after step" in followed.out and "job_manager" not in followed.out
    ended = far("status", "far", *at)
    assert ended.code == 0 and ended.out.startswith("far goes on no more: stopped after step ")
    assert ended.out.endswith("SUCCEEDED)\n")
    assert far("scale", "far", "jpeg=1", *at).code == 1
    learned = len(metrics(there.runs / "far"))
    resumed = far("submit", *words, f"steps={learned + 2}", "--follow", *at)
    assert resumed.code == 0 and f"goes on after step {learned} of {learned + 2}" in resumed.out
    assert far("audit", str(there.runs / "far")).code == 0
    assert len(metrics(there.runs / "far")) == learned + 2


@pytest.mark.ray
def test_a_job_that_fails_passes_its_exit_code_and_reason_on(there):
    failed = far("submit", "demo", "policy.base=/nowhere", "name=lost", "--follow", "--address", there.url)
    assert failed.code == 2 and "/nowhere" in failed.out
    assert far("logs", "nobody", "--address", there.url).err.endswith("Submitted to it: far, lost.\n")


@pytest.mark.ray
def test_runs_that_nobody_submitted_are_told_apart_and_watched_while_one_wants_to(there, tmp_path):
    secret, at = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}, ["--address", there.url]
    assert far("submit", "demo", "policy.base=/nowhere", "name=twin", "--follow", *at).code == 2
    assert far("status", "twin", *at).out.startswith("twin goes on no more: ")
    with subprocess.Popen([sys.executable, "-c", TWINS, there.head], cwd=ROOT, env=os.environ | secret,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as twins:
        assert twins.stdin and twins.stdout and twins.stdout.readline() == b"ready\n"
        other = far("status", "twin-2", *at)
        assert other.code == 0 and other.out.startswith("twin-2: the second")
        for end in (signal.SIGINT, signal.SIGTERM):
            watched_until(end, there.url, os.environ | secret, tmp_path / f"{end}.txt")
        wait_for(lambda: python(RUNNING.format(url=there.url), **secret).stdout == "[]\n", "end of the watching")
        twins.stdin.close()


@pytest.mark.ray
def test_a_job_is_followed_through_a_connection_that_breaks(there, tmp_path):
    said, port = tmp_path / "said.txt", str(free_port())
    relay = [sys.executable, "-c", RELAY, port, there.url.rpartition(":")[2]]
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    with subprocess.Popen(relay) as line, said.open("wb") as out:
        wait_for(lambda: _open(f"127.0.0.1:{port}"), "relay")
        command = [sys.executable, "-c", FOLLOW, f"http://127.0.0.1:{port}"]
        follower = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
        wait_for(lambda: "line 2" in said.read_text(), "line of the job")
        line.kill()
    wait_for(lambda: "goes on; this command looks for it" in said.read_text(), "word of the break")
    with subprocess.Popen(relay) as line:
        assert follower.wait(PATIENCE) == 3
        line.kill()
    assert re.findall(r"^line (\d)$", said.read_text(), re.M) == list("123456")
    assert f"http://127.0.0.1:{port} answers again" in said.read_text()


@pytest.mark.ray
@pytest.mark.parametrize(("settings", "said"), [
    ({"RAY_AUTH_TOKEN": "f" * 64}, "wants a token: "),
    ({"RAY_AUTH_MODE": "disabled"}, "wants a token: "),
    ({"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "/nowhere"}, "wants a token: "),
])
def test_without_the_right_token_one_is_told_how_to_give_it(there, settings, said):
    began = time.monotonic()
    answer = far("status", "far", "--address", there.url, **settings)
    assert answer.code == 2 and said in answer.err and "RAY_AUTH_TOKEN" in answer.err and "Traceback" not in answer.err
    assert time.monotonic() - began < 30


@pytest.mark.ray
def test_a_cluster_that_is_too_small_is_said_to_be_so_before_anything_is_given_up(there, model, tmp_path):
    words = ["train", "demo", f"policy.base={model}", "actors.cpus=99", "ray.timeout=17", "name=large"]
    answer = far(*words, "--runs", str(tmp_path), RAY_ADDRESS=there.head)
    assert answer.code == 1
    waiting, end = answer.err.splitlines()[-2:]
    assert waiting.startswith("Waiting, ray.timeout = 17 s at most, for 2 of 2 samplers")
    assert ": the cluster has 5 CPU" in waiting
    assert "after ray.timeout = 17 s the cluster has not started 2 of 2 samplers" in end and "lower actors.count" in end


@pytest.mark.ray
@pytest.mark.parametrize(("words", "said"), [
    (["status", "far", "--address", "URL"], r"the cluster at http://\S+ runs Ray 2\.\d+\.\d, this .* 2\.9\.3"),
    (["status", "far", "--address", "HEAD"], r"do not fit together\. Version mismatch: .*Ray: 2\.\d.* Ray: 2\.9\.3"),
])
def test_a_cluster_of_another_ray_is_named_with_its_version(there, words, said):
    places = {"URL": there.url, "HEAD": there.head}
    code = (
        "import sys, ray; ray.__version__ = '2.9.3'\nfrom deploy.__main__ import main\n"
        f"sys.exit(main({[places.get(word, word) for word in words]!r}))"
    )
    answer = python(code, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    assert answer.returncode == 2 and re.search(said, answer.stderr) and "constraints.txt" in answer.stderr


def test_without_a_cluster_one_is_told_where_it_was_looked_for():
    url = f"http://127.0.0.1:{free_port()}"
    answer = far("submit", "demo", "--address", url)
    assert answer.code == 2 and f"no Ray dashboard answers at {url}" in answer.err and "--address URL" in answer.err
    visit = far("stop", "demo", "--address", url.removeprefix("http://"))
    assert visit.code == 2 and "that this command may join answers at '127.0.0.1:" in visit.err
    assert "A run that started a cluster of its own cannot be reached." in visit.err
    train = far("train", "demo", RAY_ADDRESS=url)
    assert train.code == 2 and "is a dashboard's URL, by which `ddpo submit` has a run train" in train.err


def test_the_table_of_pools_says_why_a_worker_did_not_start():
    state = State("jpeg", 1, 1, 2, 2, 2, 0, 1, 8, 0.02, 0.5, 0, 64)
    [line] = mailbox.table([state]).splitlines()[1:]
    assert line.split() == ["jpeg", "1", "1", "2..2", "0", "1", "0.02", "0.5"]
    said = mailbox.table([dataclasses.replace(state, trouble="no such model")]).splitlines()
    assert said[2:] == ["jpeg: the last worker that should have started did not: no such model"]


def test_an_older_python_is_named_before_anything_else_fails():
    done = python("import sys; sys.version_info = (3, 9); import deploy")
    assert done.returncode == 1 and done.stderr.startswith("ddpo: this is Python 3.9, and 3.11 or newer is needed")


def test_a_run_file_that_would_not_be_uploaded_is_refused(tmp_path):
    assert submission.inside(ROOT / "deploy" / "recipes" / "demo.toml") == "deploy/recipes/demo.toml"
    with pytest.raises(InputError, match="Copy the run file, and the rewards and prompts that it names, into the"):
        submission.inside(tmp_path / "mine.toml")


def test_files_that_would_not_be_uploaded_are_refused_before_anything_is(monkeypatch, make_run):
    monkeypatch.chdir(ROOT / "tests")  # a job's paths lead from the checkout, wherever one submits from
    function = ["rewards.mine.kind=function", "prompts.kind=from_file"]
    submission.check(make_run(*function, "rewards.mine.path=rewards/jpeg.py", "prompts.path=/on/the/cluster.txt"))
    for path in ("conftest.py", "../conftest.py", "tests/conftest.py"):  # not there, outside, left out by .rayignore
        with pytest.raises(InputError, match=r"prompts.path = 'no.txt', rewards.mine.path = .*: nothing of "):
            submission.check(make_run(*function, f"rewards.mine.path={path}", "prompts.path=no.txt"))
    submission.check(make_run("policy.base=menagerie", "rewards.jpeg.kind=clipscore", "rewards.jpeg.model=some/hub"))
    http = ["rewards.jpeg.kind=http", "rewards.jpeg.url=http://server", "rewards.jpeg.token_file=x"]
    with pytest.raises(InputError, match=r"^rewards.jpeg.token_file = 'x', policy.base = 'support': nothing of that"):
        submission.check(make_run("policy.base=support", *http))


def test_a_dashboard_is_looked_for_where_rays_own_commands_look(monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "https://head:8265")
    assert steer._far("") == submission.dashboard("") == "https://head:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://other:8265")
    assert steer._far("") == submission.dashboard("") == "http://other:8265"
    assert steer._far("http://mine:1") == submission.dashboard("http://mine:1") == "http://mine:1"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")  # on a machine of the cluster
    assert steer._far("") == "" and submission.dashboard("") == "http://other:8265"


def test_clients_load_no_torch_and_no_model_library():
    code = (
        "import sys\nfrom deploy.__main__ import main\n"
        f"print([main([*words, '--address', 'http://127.0.0.1:{free_port()}']) for words in\n"
        "       (['submit', 'demo'], ['status', 'x'], ['scale', 'x'], ['logs', 'x'], ['stop', 'x'])])\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'wandb'} & set(sys.modules)))\n"
    )
    done = python(code)
    assert done.stdout.splitlines() == ["[2, 2, 2, 2, 2]", "[]"]


def test_what_is_uploaded_is_small_and_has_all_that_a_job_needs(tmp_path):
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "job.zip"
    create_package(str(ROOT), package, include_gitignore=True)
    names = set(zipfile.ZipFile(package).namelist())
    assert {"deploy/__main__.py", "deploy/recipes/demo.toml", "menagerie/model/unet/config.json"} <= names
    assert not [name for name in names if name.startswith(("tests/", "docs/", ".git/", "runs/"))]
    assert package.stat().st_size < 30_000_000
