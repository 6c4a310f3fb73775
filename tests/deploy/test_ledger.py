"""The ledger: what audit finds in it, undisturbed, killed and tampered with; and images drawn again from it."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from learning import local_pools
from terminal import Answer, result, write_run

from actors.prompts import Draw, source
from ddpo.errors import DeliveryError
from deploy import ledger
from deploy.__main__ import main
from deploy.audit import audit
from deploy.folder import RunFolder

STEPS, LAG = 5, 2

# Which images get no score follows from their pixels alone, so a run that was killed and resumed masks the same ones.
PICKY = """
import os, signal
calls = 0
def reward(images, prompts, metadata):
    global calls
    calls += 1
    if calls == {kill}:
        os.kill(os.getpid(), signal.SIGKILL)
    return [None if image.sum() % 5 == 0 else float(image.mean()) for image in images], {{}}
"""


def overrides(folder: Path, kill: int, lag: int = LAG) -> dict[str, Any]:
    """A run that masks some images and is killed by SIGKILL in a call of its reward."""
    path = folder / f"picky-{kill}.py"
    path.write_text(PICKY.format(kill=kill))
    reward = {"mine": {"kind": "function", "path": str(path)}}
    return {"steps": STEPS, "lag": lag, "rewards": reward, "checkpoints": {"every": 2, "keep": 1}}


@pytest.fixture(scope="module")
def history() -> list[tuple[str, bytes]]:
    """What the finished run wrote into ledger.jsonl and metrics.jsonl, in its order."""
    return []


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, bytes]]) -> Path:
    """A finished run at lag 2 with masked images and one checkpoint left."""
    folder = tmp_path_factory.mktemp("finished")
    append = RunFolder.append

    def recorded(self: RunFolder, file: Path, records: Any) -> None:
        start = file.stat().st_size if file.exists() else 0
        append(self, file, records)
        history.append((file.name, file.read_bytes()[start:]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "append", recorded)
        file = write_run(folder / "small.toml", tiny.run(model) | overrides(folder, -1))
        assert main(["train", str(file), "--in-process", "--runs", str(folder / "runs")]) == 0
    return folder / "runs" / "small"


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The finished run, to be tampered with."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def lines(run: Path) -> list[str]:
    return (run / "ledger.jsonl").read_text().splitlines()


def entries(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines(run)]


def rewrite(run: Path, kept: list[str]) -> None:
    (run / "ledger.jsonl").write_text("".join(line + "\n" for line in kept))


def changed(run: Path, number: int, **changes: Any) -> None:
    found = [entry | changes if entry.get("image") == number else entry for entry in entries(run)]
    rewrite(run, [json.dumps(entry) for entry in found])


def test_a_finished_run_adds_up(ddpo, finished):
    answer = ddpo("audit", finished)
    masked = result(finished)["images_masked"]
    assert answer.code == 0, answer.err
    assert f"The ledger adds up: 40 drawn = {40 - masked} trained + {masked} masked + 0 in flight." in answer.out
    assert f"{masked:,}  reward 'mine': gave None, that is no score" in answer.out and masked > 0
    assert "8 by 0, 8 by 1, 24 by 2" in answer.out and "3 drew these images; 3 are kept" in answer.out


def test_a_masked_image_says_why_and_has_no_reward(finished):
    masked = [entry for entry in entries(finished) if entry.get("fate") == "masked"]
    assert masked and all(entry["reward"] is None and "gave None" in entry["reason"] for entry in masked)
    assert all("reason" not in entry for entry in entries(finished) if entry.get("fate") == "trained")


def test_for_programs(ddpo, finished):
    found = json.loads(ddpo("audit", finished, "--json").out)
    assert found["drawn"] == 40 and found["in_flight"] == 0 and found["problems"] == [] and found["ended"]
    assert found["lags"] == {"0": 8, "1": 8, "2": 24}


def killed_anywhere(history: list[tuple[str, bytes]]) -> Iterator[dict[str, bytes]]:
    """Both files as a SIGKILL leaves them between any two writes, and in the middle of any write."""
    files = {"ledger.jsonl": b"", "metrics.jsonl": b""}
    for name, content in history:
        for torn in (1, len(content) // 2, len(content) - 1):
            yield {**files, name: files[name] + content[:torn]}
        files[name] += content
        yield dict(files)


def test_killed_at_any_moment_it_adds_up_and_nothing_is_missed(copy, history):
    (copy / "result.json").unlink()
    shutil.rmtree(copy / "checkpoints")
    seen = []
    for files in killed_anywhere(history):
        for name, content in files.items():
            (copy / name).write_bytes(content)
        found = audit(copy)
        assert found.problems == []
        assert found.drawn == found.trained + sum(found.masked.values()) + found.in_flight
        assert found.in_flight <= (LAG + 1) * 8 and not found.ended
        seen.append((found.drawn, found.in_flight))
    assert seen[-1] == (40, 0) and (24, 24) in seen and (32, 24) in seen and (40, 8) in seen


def test_killed_in_a_random_step_and_resumed_the_ledger_is_that_of_an_undisturbed_run(
    start, ddpo, model, finished, tmp_path
):
    kill = random.Random(4).randint(4, 10)  # the first grid is call 1, each batch two more, so in step 1 to 3
    table = tiny.run(model) | overrides(tmp_path, kill)
    command = start("train", write_run(tmp_path / "small.toml", table), "--in-process")
    assert command.process.wait(100) == -signal.SIGKILL, command.terminal()
    run = tmp_path / "runs" / "small"
    before = audit(run)
    assert before.problems == [] and before.in_flight > 0 and before.steps < STEPS
    Path(table["rewards"]["mine"]["path"]).write_text(PICKY.format(kill=-1))
    assert ddpo("train", tmp_path / "small.toml", "--in-process", "--resume").code == 0
    assert ddpo("audit", run).code == 0
    assert sorted(lines(run)) == sorted(lines(finished))
    assert sorted(path.name for path in (run / "policies").iterdir()) == sorted(
        path.name for path in (finished / "policies").iterdir()
    )


def test_at_lag_0_a_torn_ledger_is_mended_by_resume(ddpo, model, tmp_path):
    file = write_run(tmp_path / "small.toml", tiny.run(model) | overrides(tmp_path, -1, lag=0) | {"steps": 2})
    assert ddpo("train", file, "--in-process").code == 0
    run = tmp_path / "runs" / "small"
    undisturbed = lines(run)
    assert audit(run).problems == [] and audit(run).lags == {0: 16}
    (run / "result.json").unlink()
    shutil.rmtree(run / "checkpoints" / "000002")
    rewrite(run, undisturbed[:-3])
    (run / "ledger.jsonl").write_bytes((run / "ledger.jsonl").read_bytes() + b'{"step": 2, "ima')
    (run / "metrics.jsonl").write_text("".join((run / "metrics.jsonl").read_text().splitlines(True)[:1]))
    assert audit(run).problems == [] and audit(run).in_flight == 8
    assert ddpo("train", file, "--in-process", "--resume").code == 0
    assert lines(run) == undisturbed and audit(run).problems == []


def without(image: int) -> Callable[[Path], None]:
    return lambda run: rewrite(run, [line for line in lines(run) if json.loads(line).get("image") != image])


def twice(run: Path) -> None:
    rewrite(run, [*lines(run), next(line for line in lines(run) if json.loads(line).get("image") == 17)])


def of_the_wrong_policy(run: Path) -> None:
    changed(run, 30, version=0, digest=next(entry["digest"] for entry in entries(run) if entry.get("version") == 0))


def undrawn(run: Path) -> None:
    rewrite(run, [line for line in lines(run) if not line.startswith('{"step": 4, "drawn"')])


def damaged(run: Path) -> None:
    content = lines(run)
    rewrite(run, [*content[:3], content[3][:50], *content[4:]])


def without_a_metric(run: Path) -> None:
    rows = (run / "metrics.jsonl").read_text().splitlines(True)
    (run / "metrics.jsonl").write_text("".join(rows[:-1]))


def ended_too_early(run: Path) -> None:
    without_a_metric(run)
    shutil.rmtree(run / "checkpoints")
    rewrite(run, [line for line in lines(run) if '"step": 5, "image"' not in line])


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (without(9), "step 2: image 9 was drawn, but neither trained nor masked"),
        (twice, "step 3: image 17 was entered more than once"),
        (of_the_wrong_policy, "step 4: image 30 was drawn by policy 0; lag = 2 gives this batch to policy 1"),
        (lambda run: changed(run, 30, digest="0" * 64), "policy 1 has 2 digests"),
        (lambda run: changed(run, 5, reward=7.0), "step 1: reward_mean is"),
        (lambda run: changed(run, 5, image=500), "step 1: image 500 was entered, which the batch does not have"),
        (undrawn, "step 4: its batch is entered as drawn 0 times, not once"),
        (damaged, "line 4 of ledger.jsonl is damaged"),
        (without_a_metric, "there is a checkpoint of step 5, but metrics.jsonl has 4 steps: lines were lost"),
        (ended_too_early, "the run has ended, but the batches of steps [5] were neither trained nor masked"),
    ],
)
def test_what_does_not_add_up_is_told_and_the_command_fails(ddpo, copy, tamper, said):
    tamper(copy)
    answer = ddpo("audit", copy)
    assert answer.code == 1
    assert "does not add up" in answer.out and said in answer.err, answer.err


def test_a_run_that_its_guard_stopped_may_leave_batches_in_flight(copy):
    ended_too_early(copy)
    books = audit(copy)
    sums = {"images_trained": books.trained, "images_masked": sum(books.masked.values())}
    (copy / "result.json").write_text(json.dumps(result(copy) | sums | {"steps": 4, "stopped": "fell"}))
    assert audit(copy).problems == [] and audit(copy).in_flight == 8


def test_a_policy_that_is_not_what_was_written(ddpo, copy):
    path = next((copy / "policies").glob("000001-*"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    said = f"policies/{path.name} is not what was written"
    assert said in ddpo("audit", copy).err
    answer = ddpo("replay", copy, "30")
    assert answer.code == 1 and "policy 1 (digest" in answer.err and "or not whole" in answer.err


def first_of(run: Path, fate: str, version: int) -> int:
    return next(
        entry["image"] for entry in entries(run) if (entry.get("fate"), entry.get("version")) == (fate, version)
    )


@pytest.mark.parametrize(("fate", "version"), [("trained", 0), ("trained", 1), ("trained", 2), ("masked", 1)])
def test_any_image_is_drawn_again_bit_for_bit(ddpo, finished, fate, version):
    image = first_of(finished, fate, version)  # policies 0 to 2 are in no checkpoint any more
    assert [path.name for path in (finished / "checkpoints").iterdir()] == ["000005"]
    answer = ddpo("replay", finished, image, "--out", "again.png")
    assert answer.code == 0, answer.err
    assert "again.png: bit for bit the image that the run drew" in answer.out and fate in answer.out
    assert Path("again.png").stat().st_size > 100


def test_an_image_that_comes_out_otherwise_is_not_called_the_same(ddpo, copy):
    changed(copy, 12, seed=1)
    (copy / "run.json").write_text(json.dumps(json.loads((copy / "run.json").read_text()) | {"torch": "1.0"}))
    answer = ddpo("replay", copy, "12")
    assert answer.code == 1 and "not the image of the run" in answer.out
    assert "its pixels are not those of the run" in answer.err and "torch 1.0 then" in answer.err


def test_an_image_of_another_gpu_is_told_of(ddpo, copy):
    changed(copy, 12, seed=1)
    there = {"device": "NVIDIA A100-SXM4-80GB", "capability": "8.0", "driver": "535.104.05"}
    found = [entry | {"hardware": there} if "hardware" in entry else entry for entry in entries(copy)]
    rewrite(copy, [json.dumps(entry) for entry in found])
    assert audit(copy).problems == []
    said = ddpo("replay", copy, "12").err
    assert "device NVIDIA A100-SXM4-80GB then, cpu now; capability 8.0 then" in said
    assert "driver 535.104.05 then, none now" in said


@pytest.mark.parametrize(("image", "said"), [("400", "the ledger has images 0 to 39"), ("x", "not a whole number")])
def test_an_image_that_is_not_there(ddpo, finished, image, said):
    answer = ddpo("replay", finished, image)
    assert answer.code == 2 and said in answer.err


def test_an_image_in_flight(ddpo, copy):
    rewrite(copy, [line for line in lines(copy) if '"step": 5, "image"' not in line])
    answer = ddpo("replay", copy, "39")
    assert answer.code == 2 and "it is in flight, that is drawn, but its step is not learned yet" in answer.err


def test_receipts_of_other_images_are_not_entered(make_run):
    samplers, rewards, learner = local_pools(run := make_run())
    scored = rewards.score(samplers.sample(Draw(run, source(run.prompts))(0), learner.policy())).wait()
    assert [line["image"] for line in ledger.fates(scored, 1)] == list(range(8))
    with pytest.raises(DeliveryError, match="image 4 where image 0 is due"):
        list(ledger.fates(replace(scored, receipts=scored.receipts[::-1]), 1))


def on_first_read(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object], of: str = "policies") -> None:
    """Let something happen while the audit reads the first policy of a checkpoint, or of all."""
    read, happened = Path.read_bytes, list[Path]()

    def reading(path: Path) -> bytes:
        content = read(path)
        if path.suffix == ".msgpack" and of in path.parts and not happened:
            happened.append(path)
            happens()
        return content

    monkeypatch.setattr(Path, "read_bytes", reading)


def test_a_run_that_finishes_a_step_while_it_is_audited_adds_up(copy, tmp_path, monkeypatch):
    shutil.copytree(copy, tmp_path / "later")
    ended_too_early(copy)
    (copy / "result.json").unlink()
    on_first_read(monkeypatch, lambda: shutil.copytree(tmp_path / "later", copy, dirs_exist_ok=True))
    found = audit(copy)
    assert found.problems == [] and (found.steps, found.in_flight) == (4, 8)
    assert (copy / "checkpoints" / "000005").is_dir() and audit(copy).steps == 5


def test_a_checkpoint_that_is_pruned_while_it_is_read_is_left_out(copy, monkeypatch):
    on_first_read(monkeypatch, lambda: shutil.rmtree(copy / "checkpoints" / "000005"), "checkpoints")
    found = audit(copy)
    assert found.problems == [] and found.kept == 3 and not (copy / "checkpoints" / "000005").exists()


def test_policies_of_checkpoints_only(train, ddpo, tmp_path):
    run = tmp_path / "runs" / "small"
    assert train("checkpoints.policies=checkpoints", "steps=1").code == 0 and not (run / "policies").exists()
    answer: Answer = ddpo("replay", run, "0")
    assert answer.code == 1 and "policy 0 (digest" in answer.err and "There are: 1." in answer.err
    assert ddpo("audit", run).code == 0


@pytest.mark.parametrize("command", [("audit",), ("replay", "3")])
def test_what_is_no_run_and_a_run_without_a_ledger(ddpo, copy, tmp_path, command):
    answer = ddpo(command[0], tmp_path, *command[1:])
    assert answer.code == 2 and "is no run folder: it has no config.toml" in answer.err
    (copy / "ledger.jsonl").unlink()
    answer = ddpo(command[0], copy, *command[1:])
    assert answer.code == 2 and "has no ledger.jsonl" in answer.err
