"""`ddpo train`: puts the rooms together and starts the main loop (deploy.session).

Consumes a prepared run, produces the run folder; waits for the pools. Where Ray does the work, torch is not
imported here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddpo.config import Run
from ddpo.device import hardware
from ddpo.errors import CheckpointError, InputError, Interrupted, Stopped
from ddpo.types import Rollouts
from deploy import cluster
from deploy.board import Board
from deploy.facts import facts
from deploy.folder import RunFolder, choose, guarded, there_is
from deploy.interrupt import Stop, stoppable
from deploy.log import Wandb
from deploy.machines import Machines
from deploy.placing import wanted
from deploy.prepare import Prepared, check_deadlines, clip, clip_note, idle_notes
from deploy.session import Session
from learner import checkpoint
from learner.checkpoint import Checkpoint


def train(prepared: Prepared, runs: Path, resume: str | None, in_process: bool) -> RunFolder:
    """Run to the end, or to an interrupt; `resume` is None, "" for the newest checkpoint, a step, or "auto"."""
    _check_process(prepared.run, in_process)
    check_deadlines(prepared)
    if resume == "auto":  # of a job that may be tried again: the first try finds nothing to go on from
        resume = "" if there_is(runs, prepared.run.name) else None
    folder = choose(runs, prepared.run.name, resume is not None)
    saved = _checkpoint(folder, resume, prepared) if resume is not None else None
    _announce(folder, prepared.run, saved)
    if _finished(folder, prepared.run, saved):
        return folder
    for note in filter(None, [*idle_notes(prepared.run), clip_note(prepared)]):
        print(f"Note: {note}", file=sys.stderr, flush=True)
    with stoppable(prepared.run.checkpoints.notice) as stop, folder.claimed():
        try:
            folder.create(prepared.run, facts(in_process) | {"clip": clip(prepared)})
            _run(prepared, folder, saved, in_process, stop)
        except KeyboardInterrupt:
            why = f"checkpoints.notice = {prepared.run.checkpoints.notice:g} s are nearly over" if stop.late else ""
            kind = Stopped if stop.asked and not stop.signalled else Interrupted
            raise kind(_left(folder, why or "stopped at once")) from None
    return folder


def _check_process(run: Run, in_process: bool) -> None:
    if in_process and run.learner.ranks > 1:
        raise InputError(
            f"learner.ranks = {run.learner.ranks} are as many processes, and --in-process is one. Write "
            "learner.ranks=1 beside it, or leave --in-process out."
        )


def _run(prepared: Prepared, folder: RunFolder, saved: Checkpoint | None, in_process: bool, stop: Stop) -> None:
    wandb = Wandb(prepared.run, folder)
    try:
        machines = Machines(prepared.run)
        with _pools(prepared, in_process, machines) as (samplers, rewards, learner, board, fetch):
            stop.wait_for_step()
            with guarded(folder.path):
                folder.cut_to(saved.step if saved else 0)
            Session(prepared, folder, samplers, rewards, learner, fetch, stop, wandb, board, machines).go(saved)
    finally:
        wandb.close()


def _announce(folder: RunFolder, run: Run, saved: Checkpoint | None) -> None:
    """Say where the run goes, and why there."""
    note = ""
    if _finished(folder, run, saved):
        note = f" is finished: {run.steps} of {run.steps} steps. To go on, ask for more, such as steps={2 * run.steps}"
    elif saved:
        note = f" goes on after step {saved.step} of {run.steps}"
    elif folder.path.name != run.name:
        note = f" (there is a run {run.name!r} already; --resume would go on with the newest of that name)"
    print(f"Run folder: {folder.path}{note}", file=sys.stderr, flush=True)


def _finished(folder: RunFolder, run: Run, saved: Checkpoint | None) -> bool:
    return saved is not None and saved.step == run.steps and folder.result_file.exists()


def _left(folder: RunFolder, why: str) -> str:
    """What a run that was stopped in the midst of a step leaves."""
    found = checkpoint.steps(folder.checkpoints)
    if found:
        return f"{why}; the newest checkpoint is {found[-1]}, --resume goes on from there."
    return f"{why}, before the first checkpoint; nothing was kept that a run could go on from."


def _checkpoint(folder: RunFolder, resume: str | None, prepared: Prepared) -> Checkpoint | None:
    """The checkpoint to go on from; None where the run was stopped before its first one."""
    found = checkpoint.steps(folder.checkpoints)
    if resume:
        found = [folder.checkpoints / f"{int(resume):06d}"]
    saved = checkpoint.load(found[-1], prepared.run) if found else None
    if saved and saved.step > prepared.run.steps:
        raise InputError(
            f"--resume: {folder.path} has learned for {saved.step} steps already and the run asks for steps = "
            f"{prepared.run.steps}. Ask for more steps, or give the checkpoint to go on from: --resume STEP."
        )
    return saved


@contextmanager
def _pools(prepared: Prepared, in_process: bool, machines: Machines) -> Iterator[tuple[Any, Any, Any, Any, Any]]:
    if in_process:
        count = max(prepared.run.actors.threads, prepared.run.learner.threads)
        os.environ.update(cluster.thread_settings(count) | cluster.GPU_SETTINGS)
        from actors.pool import LocalSamplers
        from learner.learner import LocalLearner
        from rewards.pool import LocalRewards

        run, base = prepared.run, prepared.base
        rewards = LocalRewards(run, prepared.reward_sources)
        samplers, learner = LocalSamplers(run, base), LocalLearner(run, base)
        for crew, wants in wanted(run).items():
            machines.enter(crew, hardware(getattr(wants, "device", run.policy.device)))
        yield samplers, rewards, learner, None, _here
        return
    with cluster.connected(prepared.run):
        board = Board(prepared.run)
        with cluster.pools(prepared, board, machines) as pools:
            yield *pools, board, cluster.images


def _here(rollouts: Rollouts) -> list[Any]:
    return [chunk.images for chunk in rollouts.chunks]


def latest_checkpoint(path: Path) -> Path:
    """A checkpoint folder as given, or the newest of a run folder; raises CheckpointError."""
    if (path / checkpoint.MANIFEST).is_file():
        return path
    found = checkpoint.steps(path / "checkpoints")
    if not found:
        raise CheckpointError(f"{path} is neither a checkpoint nor a run folder with one.")
    return found[-1]
