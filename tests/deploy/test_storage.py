"""Runs in a storage by URI, here file://: kept while they go on, whole at every moment, gone on with elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from moments import before_changes
from terminal import Answer, leftovers, metrics, result

from ddpo.errors import CheckpointError, InputError
from deploy.audit import audit
from deploy.folder import RunFolder
from deploy.storage import claim, mirror
from deploy.storage.claim import Claim
from deploy.storage.home import bring, cache, here
from deploy.storage.remote import Remote
from learner import checkpoint

STEPS = 3
Machine = Callable[[str], Path]


@pytest.fixture(scope="module")
def digest(undisturbed: Callable[[int], str]) -> str:
    return undisturbed(STEPS)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "there").mkdir()
    (tmp_path / "store").symlink_to("there")
    return tmp_path / "store"


@pytest.fixture(autouse=True)
def machine(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """machine("b"): be another one from now on; returns where the run is on it. Everything there goes quicker."""

    def be(name: str) -> Path:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        return cache("runs", f"file://{store}") / "small"

    for place, name, value in ((mirror, "OFTEN", 0.01), (mirror, "PAUSES", (0.02,)), (claim, "BEAT", 0.05),
                               (claim, "SILENCE", 0.5)):
        monkeypatch.setattr(place, name, value)
    be("a")
    return be


@pytest.fixture
def far(ddpo: Callable[..., Answer], run_file: Path, store: Path) -> Callable[..., Answer]:
    """far("--resume"): the run in the storage."""
    return lambda *words: ddpo("train", run_file, "--in-process", "--runs", f"file://{store}", *words)


def test_it_goes_on_on_other_machines_as_if_it_had_never_stopped(ddpo, far, store, machine, digest):
    first = machine("a")
    assert far("--resume", "auto", "steps=1").code == 0
    machine("b")
    answer = far("--resume", "auto", "steps=2")
    assert answer.code == 0 and "goes on after step 1 of 2" in answer.err and "Kept in file://" in answer.err
    machine("a")  # which was left behind
    assert "goes on after step 2 of 3" in far("--resume", "auto", f"steps={STEPS}").err
    assert result(first)["lora_digest"] == digest
    assert not leftovers(store) and not (store / "small" / "claim.json").exists()
    machine("c")
    assert ddpo("audit", f"file://{store}/small").code == 0
    assert ddpo("replay", f"file://{store}/small", "17").code == 0


def test_a_checkpoint_is_read_without_the_rest_of_the_run(far, store, machine):
    assert far("steps=1", 'checkpoints.best="reward"').code == 0
    machine("b")
    found = here(f"file://{store}/small/checkpoints/best")
    assert found.name == "000001" and checkpoint.read_state(found)["step"] == 1
    assert [path.name for path in found.parent.parent.iterdir()] == ["checkpoints"]


def test_a_second_run_of_the_name_has_a_folder_of_its_own(far, store, machine):
    assert far("steps=1").code == 0
    machine("b")
    assert "--resume would go on" in far("steps=1").err
    assert sorted(path.name for path in store.iterdir()) == ["small", "small-2"]
    assert far("--resume", "steps=2").code == 0
    assert len(metrics(store / "small-2")) == 2 and len(metrics(store / "small")) == 1


def test_at_every_moment_what_is_there_adds_up(far, store, tmp_path, monkeypatch):
    moments: list[Path] = []

    def snapped(method: str) -> None:
        act = getattr(Remote, method)

        def acted(self: Remote, *arguments: object) -> None:
            act(self, *arguments)
            if threading.current_thread().name == "mirror":
                moments.append(tmp_path / "moments" / str(len(moments)))
                shutil.copytree(store, moments[-1], ignore=shutil.ignore_patterns("claim*"))

        monkeypatch.setattr(Remote, method, acted)

    snapped("write")
    snapped("remove")
    assert far("steps=3", "checkpoints.keep=1", 'checkpoints.best="reward"').code == 0
    assert far("--resume", "steps=4", "checkpoints.keep=2").code == 0
    went_back = len(moments)
    assert far("--resume", "3", "steps=4").code == 0
    newest = [whole(moment / "small", tmp_path / "fresh" / moment.name) for moment in moments]
    assert newest[:went_back] == sorted(newest[:went_back]) and newest[-1] == 4 and len(set(newest)) > 2
    assert set(newest[went_back:]) <= {3, 4}


def test_while_a_run_goes_back_what_is_there_adds_up(far, store, machine, tmp_path, monkeypatch):
    folder, newest = RunFolder(machine("a")), list[int]()
    assert far(f"steps={STEPS}", 'checkpoints.best="reward"').code == 0
    kept = mirror.Mirror(folder, Remote(f"file://{store}/small"), claims(store))

    def look() -> None:
        kept._tried()
        newest.append(whole(store / "small", tmp_path / "fresh"))

    with monkeypatch.context() as patch:
        before_changes(patch, look)
        folder.cut_to(1)
    look()
    assert newest == sorted(newest, reverse=True) and set(newest) == {1, 2, 3}
    assert contents(store)["files"].keys() >= {"metrics.jsonl", "checkpoints/000001/manifest.json"}


def contents(store: Path) -> dict[str, Any]:
    return json.loads((store / "small" / "contents.json").read_text())


@pytest.fixture
def uploaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names, as they are uploaded."""
    names, write = list[str](), Remote.write

    def recorded(self: Remote, name: str, source: bytes | Path) -> None:
        write(self, name, source)
        names.append(name)

    monkeypatch.setattr(Remote, "write", recorded)
    return names


@pytest.fixture
def growing(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "growing")
    folder.checkpoints.mkdir(parents=True)
    grow(folder, 0.01)
    return folder


def grow(folder: RunFolder, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for file in (folder.ledger_file, folder.metrics_file):
            folder.append(file, [{"step": 1}])
        time.sleep(0.005)


def test_what_grows_is_uploaded_again_for_a_checkpoint_and_at_the_end(store, growing, uploaded, monkeypatch):
    monkeypatch.setattr(mirror, "REST", 1_000_000)
    with mirror.Mirror(growing, Remote(f"file://{store}/small"), claims(store)):
        wait_for(lambda: "contents.json" in uploaded)
        grow(growing, 0.3)
        assert uploaded == ["ledger.jsonl", "metrics.jsonl", "contents.json"]
        (growing.checkpoints / "000001").mkdir()
        (growing.checkpoints / "000001" / "manifest.json").write_text("{}")
        wait_for(lambda: uploaded.count("contents.json") == 2)
        grow(growing, 0.3)
        assert uploaded[3:] == ["ledger.jsonl", "metrics.jsonl", "checkpoints/000001/manifest.json", "contents.json"]
    assert uploaded[7:] == ["ledger.jsonl", "metrics.jsonl", "contents.json"]
    assert (store / "small" / "ledger.jsonl").read_bytes() == growing.ledger_file.read_bytes()


def test_what_grows_is_uploaded_again_after_a_rest(store, growing, uploaded, monkeypatch):
    monkeypatch.setattr(mirror, "REST", 2)
    with mirror.Mirror(growing, Remote(f"file://{store}/small"), claims(store)):
        grow(growing, 1.0)
        assert uploaded.count("ledger.jsonl") > 2


@pytest.mark.parametrize(("link", "best"), [("000001", "000001"), ("000002", None)])
def test_best_is_named_only_where_its_checkpoint_is_there(tmp_path, link, best):
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    (folder.checkpoints / "best").symlink_to(link)
    pieces = {"checkpoints/000001/manifest.json": mirror.Piece(2, "", b"{}")}
    assert json.loads(mirror.contents_of(pieces, folder))["best"] == best


def whole(there: Path, folder: Path) -> int:
    """The newest checkpoint of what a reader finds, once all that he finds has been proven; 0 where there is none."""
    bring(Remote(f"file://{there}"), folder)
    if not folder.exists():
        return 0
    found = audit(folder)
    assert not found.problems
    try:
        steps = [checkpoint.read_state(path)["step"] for path in checkpoint.steps(folder / "checkpoints")]
    except CheckpointError as error:
        pytest.fail(str(error))
    return max(steps, default=0)


def away(store: Path) -> None:
    """Nothing can be written to the storage, nor read from it, from one moment to the next."""
    point(store, "/dev/null/nowhere")


def back(store: Path) -> None:
    point(store, "there")


def point(store: Path, target: str) -> None:
    link = store.with_name("link")
    link.symlink_to(target)
    link.replace(store)


def test_where_the_storage_is_away_for_a_while_the_run_goes_on(far, store, machine, digest, monkeypatch):
    monkeypatch.setattr(mirror, "PATIENCE", 30.0)

    def interfere() -> None:
        wait_for((store / "small" / "contents.json").exists)
        away(store)
        wait_for((machine("a") / "result.json").exists)
        back(store)

    thread = threading.Thread(target=interfere)
    thread.start()
    answer = far(f"steps={STEPS}")
    thread.join()
    assert answer.code == 0 and "The run goes on" in answer.err and "can be written again" in answer.err
    assert result(store / "small")["lora_digest"] == digest
    assert len(metrics(store / "small")) == STEPS and not audit(store / "small").problems


def test_what_could_not_be_kept_is_told_and_brought_by_the_next_resume(far, store, machine, digest, monkeypatch):
    monkeypatch.setattr(mirror, "PATIENCE", 0.5)
    assert far("steps=1").code == 0
    look = mirror.Mirror._look
    monkeypatch.setattr(mirror.Mirror, "_look", lambda self: (away(store) if store.is_dir() else None, look(self)))
    answer = far("--resume", "steps=2")
    assert answer.code == 0 and "files (0." in answer.err and "--resume goes on from them here" in answer.err
    back(store)
    monkeypatch.setattr(mirror.Mirror, "_look", look)
    assert len(metrics(store / "small")) == 1
    assert "goes on after step 2" in far("--resume", f"steps={STEPS}").err
    assert result(store / "small")["lora_digest"] == digest


def wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true() and time.monotonic() < end:
        time.sleep(0.01)


def claims(store: Path, **changes: object) -> Claim:
    held = Claim(Remote(f"file://{store}/small"))
    held.mine |= changes
    return held


def test_two_may_not_write_one_run(far, store, monkeypatch):
    assert far("steps=1").code == 0
    with claims(store) as held:
        held.take()
        answer = far("--resume", "steps=2")
    assert answer.code == 2 and f"process {os.getpid()} on" in answer.err and "is training in file://" in answer.err
    assert len(metrics(store / "small")) == 1
    monkeypatch.setattr(Remote, "fetch", lambda *_: pytest.fail("fetched, though nobody has written since"))
    assert far("--resume", "steps=2").code == 0


@pytest.mark.parametrize("left", [{"space": "another machine"}, {"process": 2**30}], ids=["silent", "dead"])
def test_the_claim_of_one_that_was_killed_holds_nobody_up_for_long(store, capsys, left):
    claims(store, **left).take()
    claims(store).take()
    assert ("whether it lives is known within" in capsys.readouterr().err) is ("space" in left)
    assert json.loads((store / "small" / "claim.json").read_text())["process"] == os.getpid()


def test_one_that_was_cut_off_and_replaced_writes_no_more(store, tmp_path):
    with claims(store) as held:
        held.take()
        (store / "small" / "claim.json").write_text(json.dumps(held.mine | {"owner": "b", "host": "there"}))
        wait_for(lambda: bool(held.taken))
        with pytest.raises(claim.Taken, match="on there has taken the run over"):
            held.check()
    assert json.loads((store / "small" / "claim.json").read_text())["owner"] == "b"


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "checkpoints/../../evil"])
def test_no_file_is_written_outside_the_folder(store, name):
    (store / "small").mkdir(parents=True)
    (store / "small" / "contents.json").write_text(
        json.dumps({"format": mirror.FORMAT, "best": None, "files": {name: {"size": 1, "sha256": ""}}})
    )
    with pytest.raises(InputError, match="is not what this program writes"):
        here(f"file://{store}/small")


def test_what_is_not_there_or_cannot_be_reached_is_told(ddpo, far, run_file, store):
    for words, said in (
        (("audit", f"file://{store}/small"), "neither a run nor a checkpoint"),
        (("train", run_file, "--runs", "nosuch://x"), "cannot be reached from here"),
        (("train", run_file, "--runs", f"file://{store}", "--resume"), f"no run 'small' in file://{store}"),
    ):
        answer = ddpo(*words)
        assert answer.code == 2 and said in answer.err
    away(store)
    assert "cannot be reached or not be used" in far().err
