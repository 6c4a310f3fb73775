"""--resume through the command line: the same end as of a run that never stopped; nothing damaged or foreign."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import tiny
from moments import Killed, kill_at
from terminal import Answer, leftovers, metrics, result, write_run

from deploy.__main__ import main
from deploy.audit import audit
from deploy.folder import RunFolder
from deploy.storage.mirror import newest
from learner import checkpoint

STEPS = 3


@pytest.fixture(scope="module")
def finished(request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small.toml and its finished run of three steps; the lag may come from the test."""
    folder = tmp_path_factory.mktemp("finished")
    file = write_run(folder / "small.toml", tiny.run(model) | {"steps": STEPS, "lag": getattr(request, "param", 0)})
    assert main(["train", str(file), "--in-process", "--runs", str(folder / "runs")]) == 0
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The finished run, to be cut short or spoilt; beside it, the run file."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy" / "runs" / "small"


@pytest.fixture
def resume(ddpo: Callable[..., Answer], copy: Path) -> Callable[..., Answer]:
    """resume("steps=4"): `ddpo train small.toml --resume`, in this process."""
    return lambda *words: ddpo(
        "train", copy.parent.parent / "small.toml", "--in-process", "--runs", copy.parent, "--resume", *words
    )


def cut(run: Path, step: int) -> None:
    """As if the process had been killed right after the checkpoint of `step`."""
    for later in range(step + 1, STEPS + 1):
        shutil.rmtree(run / "checkpoints" / f"{later:06d}")
    (run / "result.json").unlink()


def without_time(run: Path) -> list[dict]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in metrics(run)]


@pytest.mark.parametrize("finished", [0, 2], indirect=True, ids=["lag 0", "lag 2"])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_stopped_after_any_step_and_resumed_ends_alike(resume, copy, finished, step):
    cut(copy, step)
    answer = resume()
    assert answer.code == 0, answer.err
    assert step == 0 or f"goes on after step {step} of 3" in answer.err
    undisturbed = finished / "runs" / "small"
    assert result(copy)["lora_digest"] == result(undisturbed)["lora_digest"]
    assert without_time(copy) == without_time(undisturbed)
    for picture in (undisturbed / "images").glob("*.png"):
        assert (copy / "images" / picture.name).read_bytes() == picture.read_bytes()


def test_a_grid_that_was_not_drawn_yet_is_drawn_after_resume(resume, copy):
    cut(copy, 2)
    lost = copy / "images" / "000002.png"
    assert resume("images.every=2").code == 0
    assert lost.exists()


def test_what_a_crash_left_half_written_is_ignored_and_removed(resume, copy, finished):
    cut(copy, 2)
    half = copy / "checkpoints" / ".partial-000003"
    shutil.copytree(copy / "checkpoints" / "000002", half)
    (half / "manifest.json").unlink()
    (copy / "checkpoints" / "000003").mkdir()  # no manifest: not complete either
    (copy / ".result.json.partial").write_text("{")
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')
    answer = resume()
    assert answer.code == 0 and "goes on after step 2 of 3" in answer.err
    assert leftovers(copy) == []
    assert result(copy)["lora_digest"] == result(finished / "runs" / "small")["lora_digest"]


def test_a_finished_run_says_so_and_goes_on_with_more_steps(resume, copy):
    before = result(copy)
    again = resume()
    assert again.code == 0 and "is finished: 3 of 3 steps" in again.err and "steps=6" in again.err
    assert result(copy) == before
    more = resume("steps=4")
    assert more.code == 0 and "goes on after step 3 of 4" in more.err
    assert result(copy)["steps"] == 4 and [line["step"] for line in metrics(copy)] == [1, 2, 3, 4]


def test_fewer_steps_than_learned_are_refused(resume):
    answer = resume("steps=1")
    assert answer.code == 2 and "has learned for 3 steps already and the run asks for steps = 1" in answer.err


def test_an_earlier_checkpoint_by_its_step(resume, copy, finished):
    answer = resume("1")
    assert answer.code == 0 and "goes on after step 1 of 3" in answer.err
    assert without_time(copy) == without_time(finished / "runs" / "small")


def killed_while_it_goes_back(run: Path, step: int, change: int) -> bool:
    """Whether it was killed at this change of files, or had made fewer."""
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, change)
        try:
            RunFolder(run).cut_to(step)
        except Killed:
            return True
    return False


def test_killed_anywhere_while_it_goes_back_the_newest_checkpoint_is_whole_and_has_its_lines(copy, tmp_path):
    (copy / "checkpoints" / "best").symlink_to("000003")
    seen = set()
    for change in count():
        run = Path(shutil.copytree(copy, tmp_path / str(change), symlinks=True))
        killed = killed_while_it_goes_back(run, 1, change)
        left = checkpoint.steps(run / "checkpoints")[-1]
        step = checkpoint.read_state(left)["step"]
        RunFolder(run).cut_to(step)
        assert audit(run).problems == [] and audit(run).steps == step
        best = run / "checkpoints" / "best"
        assert best.exists() is best.is_symlink() is (step == 3) and leftovers(run) == []
        seen.add(step)
        if not killed:
            break
    assert seen == {1, 2, 3} and change > 20


def test_killed_while_it_went_back_the_next_resume_loses_nothing(resume, ddpo, copy, finished):
    changes = count()
    while (copy / "checkpoints" / "000003").exists():
        assert killed_while_it_goes_back(copy, 1, next(changes))
    assert len(metrics(copy)) == STEPS
    answer = resume()
    assert answer.code == 0 and "goes on after step 2 of 3" in answer.err
    assert without_time(copy) == without_time(finished / "runs" / "small") and ddpo("audit", copy).code == 0


def test_best_stays_where_it_is_not_one_of_those_removed(copy):
    (copy / "checkpoints" / "best").symlink_to("000001")
    RunFolder(copy).cut_to(2)
    assert (copy / "checkpoints" / "best").resolve().name == "000001"


def test_memory_does_not_grow_with_the_lines(copy):
    ledger, row = copy / "ledger.jsonl", metrics(copy)[0]
    lines = [json.dumps({"step": 1 + i // 100, "image": i, "pixels": "ab" * 32}) + "\n" for i in range(20_000)]
    ledger.write_text("".join(lines) + '{"step": 1, "ima')
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row | {"step": 1 + i}) + "\n" for i in range(1000)))
    tracemalloc.start()
    try:
        RunFolder(copy).cut_to(150)
        assert newest(RunFolder(copy)) == 150
        assert tracemalloc.get_traced_memory()[1] < 300_000 < ledger.stat().st_size / 5
    finally:
        tracemalloc.stop()
    assert ledger.read_text() == "".join(lines[:15_000])


def test_a_last_line_without_its_end_is_kept_if_it_is_whole(copy):
    file = copy / "metrics.jsonl"
    before = file.read_bytes()
    file.write_bytes(before.removesuffix(b"\n"))
    RunFolder(copy).cut_to(STEPS)
    assert file.read_bytes() == before


def flip(file: Path) -> None:
    """Change one byte in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: flip(folder / "learner.safetensors"), "learner.safetensors is not what was written"),
        (lambda folder: flip(folder / "policies" / "000003.msgpack"), "policies/000003.msgpack is not what was"),
        (lambda folder: flip(folder / "state.json"), "state.json is not what was written"),
        (lambda folder: (folder / "learner.safetensors").unlink(), "learner.safetensors is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("[1]"), "manifest.json cannot be read"),
        (lambda folder: shutil.rmtree(folder / "policies"), "policies/00000"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_offered(resume, copy, damage, reason):
    (copy / "result.json").unlink()
    damage(copy / "checkpoints" / "000003")
    flip(copy / "checkpoints" / "000002" / "pytorch_lora_weights.safetensors")
    kept = (copy / "metrics.jsonl").read_bytes()
    answer = resume()
    assert answer.code == 2 and "checkpoints/000003: it is damaged" in answer.err and reason in answer.err
    assert "`--resume 000001` goes on from there" in answer.err  # 000002 is damaged as well
    assert (copy / "metrics.jsonl").read_bytes() == kept


def test_after_going_on_from_the_one_before_the_damaged_one_is_gone(resume, copy, finished):
    flip(copy / "checkpoints" / "000003" / "learner.safetensors")
    assert resume("000002").code == 0
    assert result(copy)["lora_digest"] == result(finished / "runs" / "small")["lora_digest"]
    (copy / "result.json").unlink()
    assert resume().code == 0


def test_a_checkpoint_of_another_config_is_refused_with_the_keys(resume, copy):
    answer = resume("learner.lr=0.5", "seed=7", "actors.batch=8", "advantage.clip=1", "policy.guidance=2.0")
    assert answer.code == 2 and "it is of another run (" in answer.err
    assert "actors.batch = 4 there, 8 now" in answer.err and "and 1 more" in answer.err
    assert "--resume 0" not in answer.err  # those before it are foreign as well


def test_what_changes_no_number_may_differ(resume, copy):
    cut(copy, 2)
    words = ("actors.count=2", "actors.timeout=50", "rewards.jpeg.workers=2", "checkpoints.every=2", "images.count=1")
    assert resume(*words).code == 0


def test_a_missing_step_and_a_missing_run(resume, ddpo, run_file):
    answer = resume("9")
    assert answer.code == 2 and "there is no complete checkpoint here" in answer.err and "--resume 000003" in answer.err
    answer = ddpo("train", run_file, "--resume", "--in-process", "name=other")
    assert answer.code == 2 and "there is no run 'other' in runs. Start it without --resume first." in answer.err


def test_resume_takes_the_newest_run_of_its_name(resume, copy):
    cut(copy, 1)
    newest = copy.with_name("small-10")
    shutil.copytree(copy, newest)
    shutil.copytree(copy, copy.with_name("small-9"))
    shutil.copytree(copy, copy.with_name("small-wide"))
    answer = resume()
    assert answer.code == 0 and f"Run folder: {newest} goes on after step 1" in answer.err
    assert (newest / "result.json").exists() and not (copy / "result.json").exists()


def test_the_state_is_readable_and_names_its_format(copy):
    state = json.loads((copy / "checkpoints" / "000003" / "state.json").read_text())
    assert state["format"] == "ddpo-checkpoint/1" and state["step"] == 3 and state["run"]["name"] == "small"


def test_two_processes_never_share_a_folder(resume, copy):
    cut(copy, 1)
    before = (copy / "metrics.jsonl").read_bytes()
    with RunFolder(copy).claimed():
        answer = resume()
    assert answer.code == 2 and "another process is training in" in answer.err
    assert (copy / "metrics.jsonl").read_bytes() == before
    assert resume().code == 0  # the lock went with its holder


def test_a_job_that_is_tried_again_starts_the_run_and_then_goes_on_with_it(resume, train, copy):
    cut(copy, 1)
    answer = resume("auto")
    assert answer.code == 0 and f"Run folder: {copy} goes on after step 1" in answer.err
    assert resume("auto").code == 0  # finished: a try after that is done at once
    answer = train("--resume", "auto", "name=first")
    assert answer.code == 0 and "Run folder: runs/first\n" in answer.err
