"""Ctrl-C once, twice, early, and kill -9: what is kept, what is said, and that no process stays."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from terminal import Started, leftovers, metrics, result

from deploy.interrupt import ASKED, SIGNALS, Stop, stoppable

# The reward runs inside the process (the call numbers: 1 is the first grid, then two for every step), so it can press
# Ctrl-C at an exact moment of the run.
PRESSING = """
import os, signal
calls = 0
def reward(images, prompts, metadata):
    global calls
    calls += 1
    for _ in range({presses}.get(calls, 0)):
        os.kill(os.getpid(), signal.{name})
    return [float(image.mean()) for image in images], {{}}
"""


def test_once_finishes_the_step_and_resume_ends_alike(train, reward_file, tmp_path):
    words = [*reward_file(PRESSING.format(presses="{}", name="SIGINT")), "steps=4", "checkpoints.every=3", "lag=2"]
    assert train(*words, "name=undisturbed").code == 0
    (tmp_path / "mine.py").write_text(PRESSING.format(presses="{6: 1}", name="SIGINT"))
    answer = train(*words)
    folder = tmp_path / "runs" / "small"
    assert answer.code == 130 and answer.out == ""
    assert "Stopping after this step, with a checkpoint. Once more stops at once." in answer.err
    assert answer.err.endswith("ddpo: stopped after step 1 of 4; --resume goes on from there.\n")
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["000001"]  # and not the third only
    assert len(metrics(folder)) == 1 and (folder / "report.html").exists() and not (folder / "result.json").exists()
    (tmp_path / "mine.py").write_text(PRESSING.format(presses="{}", name="SIGINT"))
    assert train(*words, "--resume").code == 0
    undisturbed = tmp_path / "runs" / "undisturbed"
    assert result(folder)["lora_digest"] == result(undisturbed)["lora_digest"]
    assert result(folder)["reward_last"] == result(undisturbed)["reward_last"]


def test_in_the_last_step_ends_as_if_nothing_had_been(train, reward_file, tmp_path):
    answer = train(*reward_file(PRESSING.format(presses="{5: 1}", name="SIGINT")))
    assert answer.code == 0 and result(tmp_path / "runs" / "small")["steps"] == 2


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_twice_stops_at_once_and_keeps_the_newest_checkpoint(train, reward_file, tmp_path, name):
    answer = train(*reward_file(PRESSING.format(presses="{4: 1, 5: 1}", name=name)), "steps=4")
    folder = tmp_path / "runs" / "small"
    assert answer.code == 130
    assert "stopped at once; the newest checkpoint is runs/small/checkpoints/000001" in answer.err
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["000001"]
    assert len(metrics(folder)) == 1 and leftovers(folder) == []


def test_twice_before_the_first_checkpoint_leaves_nothing(train, reward_file, tmp_path):
    answer = train(*reward_file(PRESSING.format(presses="{1: 1, 2: 1}", name="SIGINT")))
    assert answer.code == 130 and "before the first checkpoint; nothing was kept" in answer.err
    assert list((tmp_path / "runs").iterdir()) == []


def test_once_while_the_model_loads_stops_at_once(train, reward_file, tmp_path):
    answer = train(*reward_file("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\ndef reward(i, p, m): ..."))
    assert answer.code == 130 and "before the first checkpoint; nothing was kept" in answer.err
    assert list((tmp_path / "runs").iterdir()) == []


def test_handlers_are_put_back(train):
    before = [signal.getsignal(number) for number in SIGNALS]
    assert train("steps=1").code == 0
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_run_that_was_asked_to_stop_ends_well_however_often_it_was_asked(train, reward_file, tmp_path):
    answer = train(*reward_file(PRESSING.format(presses="{4: 3}", name=ASKED.name)), "steps=4")
    assert answer.code == 0 and answer.err.count("Stopping after this step, with a checkpoint. `ddpo stop` asked") == 1
    assert answer.err.endswith("ddpo: stopped after step 2 of 4; --resume goes on from there.\n")
    assert len(metrics(tmp_path / "runs" / "small")) == 2


def test_a_run_that_is_asked_to_stop_before_its_first_step_ends_well_at_once(train, reward_file, tmp_path):
    source = f"import os, signal\nos.kill(os.getpid(), signal.{ASKED.name})\ndef reward(i, p, m): ..."
    answer = train(*reward_file(source))
    assert answer.code == 0 and "before the first checkpoint; nothing was kept" in answer.err
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.fixture
def stop() -> Iterator[Stop]:
    """The handler in a process that is in the midst of a step."""
    with stoppable(1000.0) as handler:
        handler.wait_for_step()
        yield handler


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_after_ddpo_stop_a_signal_is_the_first_of_its_kind(stop, name):
    for number in (ASKED, name, ASKED):
        signal.raise_signal(number)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(name)
    assert stop.asked and stop.signalled


@pytest.mark.parametrize("before", [[], [ASKED], [signal.SIGINT], [ASKED, signal.SIGINT]])
def test_sigterm_keeps_what_can_be_kept_whatever_was_asked_for_before(stop, before):
    kept: list[str] = []
    stop.keep = lambda: kept.append("kept")
    for number in [*before, signal.SIGTERM]:
        signal.raise_signal(number)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    assert kept == ["kept", "kept"]  # and the second time before anything was raised


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_a_save_is_not_broken_off_by_further_signals(stop, name):
    saved: list[str] = []

    def keep() -> None:
        for part in ("half", "whole") if not saved else ():
            signal.raise_signal(name)
            saved.append(part)

    stop.keep = keep
    with pytest.raises(KeyboardInterrupt):  # once that is over
        signal.raise_signal(signal.SIGTERM)
    assert saved == ["half", "whole"]


def wait_for(command: Started, happened: Callable[[], object], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert command.process.poll() is None, command.terminal()
        assert time.monotonic() < end, f"not within {seconds} s: {command.terminal()}"
        time.sleep(0.05)


def nothing_left(command: Started, seconds: float = 10) -> bool:
    """Whether all processes of the command are gone, or go within a moment."""
    end = time.monotonic() + seconds
    while command.left() and time.monotonic() < end:
        time.sleep(0.2)
    return not command.left()


def clean(text: str) -> bool:
    """No traceback and no word of Ray's own."""
    return not any(noise in text for noise in ("Traceback", "raylet", "(pid=", "gcs", "\x1b["))


def test_a_real_terminal_in_one_process(start, run_file, tmp_path):
    command = start("train", run_file, "--in-process", "steps=100000", "checkpoints.every=100000", "checkpoints.keep=1")
    folder = tmp_path / "runs" / "small"
    wait_for(command, (folder / "metrics.jsonl").exists)
    command.signal()
    assert command.process.wait(100) == 130
    step = metrics(folder)[-1]["step"]
    assert f"stopped after step {step} of 100000; --resume goes on from there." in command.terminal()
    assert [int(path.name) for path in (folder / "checkpoints").iterdir()] == [step]
    assert clean(command.terminal()) and nothing_left(command)


@pytest.mark.ray
def test_once_on_ray_then_resume_in_one_process(start, train, run_file, tmp_path):
    words = ["lag=1", "actors.count=2", "checkpoints.every=100000"]
    command = start("train", run_file, "steps=100000", *words)
    folder = tmp_path / "runs" / "small"
    wait_for(command, (folder / "metrics.jsonl").exists)
    processes = len(command.left())
    command.signal()
    assert command.process.wait(200) == 130
    assert processes > 5 and nothing_left(command)
    assert clean(command.terminal()), command.terminal()
    step = metrics(folder)[-1]["step"]
    assert f"stopped after step {step} of 100000" in command.terminal() and leftovers(folder) == []
    steps = f"steps={step + 2}"
    assert train("--resume", *words, steps).code == 0
    assert train(*words, steps, "name=undisturbed").code == 0
    assert result(folder)["lora_digest"] == result(tmp_path / "runs" / "undisturbed")["lora_digest"]


HANGING = """
import pathlib, time
calls = 0
def reward(images, prompts, metadata):
    global calls
    calls += 1
    if calls > 3:  # the grid and both chunks of step 1 are scored
        pathlib.Path({marker!r}).touch()
        time.sleep(500)
    return [float(image.mean()) for image in images], {{}}
"""


@pytest.mark.ray
def test_twice_on_ray(start, reward_file, run_file, tmp_path):
    words = reward_file(HANGING.format(marker=str(tmp_path / "hangs")))
    command = start("train", run_file, *words, "rewards.jpeg.timeout=600")
    wait_for(command, (tmp_path / "hangs").exists)
    wait_for(command, (tmp_path / "runs" / "small" / "checkpoints" / "000001").exists)
    command.signal()
    wait_for(command, lambda: "Once more stops at once" in command.terminal())
    pressed = time.monotonic()
    command.signal()
    assert command.process.wait(100) == 130
    assert time.monotonic() - pressed < 100  # nobody waited for the reward
    assert nothing_left(command) and clean(command.terminal()), command.terminal()
    folder = tmp_path / "runs" / "small"
    assert "stopped at once; the newest checkpoint is runs/small/checkpoints/000001" in command.terminal()
    assert leftovers(folder) == [] and len(metrics(folder)) == 1


@pytest.mark.ray
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_while_ray_starts(start, run_file, tmp_path, name):
    command = start("train", run_file)
    wait_for(command, lambda: len(command.left()) > 2)  # the first processes of the cluster
    command.signal(getattr(signal, name))
    assert command.process.wait(200) == 130, command.terminal()
    assert nothing_left(command) and clean(command.terminal()), command.terminal()
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.ray
def test_a_driver_that_is_killed_takes_its_cluster_along(start, run_file, tmp_path):
    command = start("train", run_file, "steps=100000")
    wait_for(command, (tmp_path / "runs" / "small" / "metrics.jsonl").exists)
    os.kill(command.process.pid, signal.SIGKILL)
    command.process.wait(10)
    assert nothing_left(command, 60), command.left()  # 13 s where even the raylet had no time to leave


@pytest.mark.ray
def test_a_reward_that_does_not_load_on_ray(start, reward_file, run_file, tmp_path):
    command = start("train", run_file, *reward_file("import nothing_of_this_name\ndef reward(i, p, m): ..."))
    assert command.process.wait(240) == 1
    assert "failed while loading: ModuleNotFoundError" in command.terminal() and clean(command.terminal())
    assert nothing_left(command) and list((tmp_path / "runs").iterdir()) == []


@pytest.mark.ray
def test_an_address_where_no_cluster_is(start, run_file, tmp_path):
    command = start("train", run_file, "ray.address=127.0.0.1:9")
    assert command.process.wait(200) == 2
    assert "no Ray cluster answers at '127.0.0.1:9' (ConnectionRefusedError" in command.terminal()
    assert "start a cluster on this machine" in command.terminal() and clean(command.terminal())
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.ray
def test_gpus_that_this_machine_does_not_have(start, run_file, tmp_path):
    command = start("train", run_file, "actors.gpus=500", "learner.gpus=0.5")
    assert command.process.wait(200) == 2
    assert "the run reserves 501 GPUs (actors.gpus," in command.terminal() and clean(command.terminal())
    assert nothing_left(command) and list((tmp_path / "runs").iterdir()) == []
