"""`ddpo train`: puts the rooms together, runs the main loop, keeps the run folder.

Consumes a prepared run, produces the run folder; waits for the pools. Where Ray does the work, torch is not
imported here.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actors.prompts import Draw
from ddpo import loop
from ddpo.advantage import advantage
from ddpo.config import Run
from ddpo.errors import CheckpointError, InputError, Interrupted
from ddpo.types import Report, Rollouts, Scored
from deploy import cluster
from deploy.facts import facts
from deploy.folder import RunFolder, choose, guarded, write
from deploy.gallery import Gallery
from deploy.interrupt import Stop, stoppable
from deploy.log import Progress, Wandb, answers, record
from deploy.prepare import Prepared, clip, clip_note
from deploy.report import write_report
from learner import checkpoint
from learner.checkpoint import Checkpoint


def train(prepared: Prepared, runs: Path, resume: str | None, in_process: bool) -> RunFolder:
    """Run to the end, or to an interrupt; `resume` is None, "" for the newest checkpoint, or a step."""
    folder = choose(runs, prepared.run.name, resume is not None)
    saved = _checkpoint(folder, resume, prepared) if resume is not None else None
    _announce(folder, prepared.run, saved)
    if _finished(folder, prepared.run, saved):
        return folder
    if note := clip_note(prepared):
        print(f"Note: {note}", file=sys.stderr, flush=True)
    with stoppable() as stop, folder.claimed():
        try:
            folder.create(prepared.run, facts(in_process) | {"clip": clip(prepared)})
            _run(prepared, folder, saved, in_process, stop)
        except KeyboardInterrupt:
            raise Interrupted(_left(folder)) from None
    return folder


def _run(prepared: Prepared, folder: RunFolder, saved: Checkpoint | None, in_process: bool, stop: Stop) -> None:
    wandb = Wandb(prepared.run, folder)
    try:
        with _pools(prepared, in_process) as (samplers, rewards, learner, fetch):
            stop.wait_for_step()
            with guarded(folder.path):
                folder.cut_to(saved.step if saved else 0)
            Session(prepared, folder, samplers, rewards, learner, fetch, stop, wandb).go(saved)
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


def _left(folder: RunFolder) -> str:
    """What a run that was stopped at once leaves."""
    found = checkpoint.steps(folder.checkpoints)
    if found:
        return f"stopped at once; the newest checkpoint is {found[-1]}, --resume goes on from there."
    return "stopped at once, before the first checkpoint; nothing was kept that a run could go on from."


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
def _pools(prepared: Prepared, in_process: bool) -> Iterator[tuple[Any, Any, Any, Any]]:
    if in_process:
        os.environ.update(cluster.thread_settings(max(prepared.run.actors.threads, prepared.run.learner.threads)))
        from actors.pool import LocalSamplers
        from learner.learner import LocalLearner
        from rewards.pool import LocalRewards

        run, base = prepared.run, prepared.base
        rewards = LocalRewards(run, prepared.reward_sources)
        yield LocalSamplers(run, base), rewards, LocalLearner(run, base), _here
        return
    with cluster.connected(prepared.run):
        from rewards.ray_pool import fetch

        patience = prepared.run.actors.timeout
        yield *cluster.pools(prepared), lambda rollouts: fetch([c.images for c in rollouts.chunks], patience)


def _here(rollouts: Rollouts) -> list[Any]:
    return [chunk.images for chunk in rollouts.chunks]


class Session:
    """One call of `ddpo train`: from a checkpoint or the start, to the last step or an interrupt."""

    def __init__(
        self, prepared: Prepared, folder: RunFolder, samplers: Any, rewards: Any, learner: Any, fetch: Any, stop: Stop,
        wandb: Wandb,
    ) -> None:
        self.prepared, self.run, self.folder, self.stop, self.wandb = prepared, prepared.run, folder, stop, wandb
        self.samplers, self.rewards, self.learner = samplers, rewards, learner
        self.advantage = advantage(self.run)
        self.gallery = Gallery(prepared.fixed, samplers, rewards, fetch, folder)

    def go(self, saved: Checkpoint | None) -> None:
        """Restore, run the main loop, write the result."""
        policies = saved.policies if saved else [self.learner.policy()]
        self.policies = loop.Policies(self.run.lag, policies)
        if saved:
            self.learner.restore(saved.step, saved.learner, [(p.version, p.digest) for p in policies])
            self.advantage.restore(saved.advantage)
        self.progress = Progress(self.run, self.learner.step)
        try:
            self._learn(saved)
        finally:
            self.progress.close()

    def _learn(self, saved: Checkpoint | None) -> None:
        if self._has_grid(self.learner.step) and not self.gallery.has(self.learner.step):
            self.gallery.request(self.learner.policy())
        self.logging, self.clock = 0.0, time.perf_counter()
        draw = Draw(self.run, self.prepared.prompts)
        loop.run(
            self.run.steps, draw, self.samplers, self.rewards, self.advantage, self.learner, self.policies, self.log
        )
        self._collect()
        self._finish()

    def log(self, scored: Scored, report: Report) -> None:
        """Everything that happens between two steps, outside the algorithm."""
        self._write_metrics(scored, report)
        start = time.perf_counter()
        step, last = report.version, report.version == self.run.steps
        stopping = self.stop.requested and not last
        if step % self.run.checkpoints.every == 0 or last or stopping:
            self._collect()
            self._checkpoint(step)
        if self._has_grid(step):
            self._collect()
            self.gallery.request(self.learner.policy())
        self.logging = time.perf_counter() - start
        if stopping:
            self._collect()
            self._report()
            raise Interrupted(f"stopped after step {step} of {self.run.steps}; --resume goes on from there.")

    def _has_grid(self, step: int) -> bool:
        return step % self.run.images.every == 0 or step == self.run.steps

    def _write_metrics(self, scored: Scored, report: Report) -> None:
        """Before the step's checkpoint, so that none is without its line; "log" is the time since the last line's."""
        now = time.perf_counter()
        total, self.clock = now - self.clock, now
        waiting = max(0.0, total - report.seconds - self.logging)
        seconds = {**scored.seconds, "learn": report.seconds, "wait": waiting, "log": self.logging, "total": total}
        metrics = record(scored, report, report.version * len(scored.prompts.ids), seconds)
        for image, reason in scored.masked.items():
            self.folder.append(self.folder.masked_file, {"step": report.version, "image": image, "reason": reason})
        for answer in answers(scored, report.version):
            self.folder.append(self.folder.answers_file, answer)
        self.folder.append(self.folder.metrics_file, metrics)
        self.wandb.scalars(metrics)
        self.progress.show(metrics)

    def _checkpoint(self, step: int) -> None:
        with guarded(self.folder.checkpoints):
            checkpoint.save(
                self.folder.checkpoints, step, self.learner.state(), list(self.policies.recent),
                self.advantage.state(), self.run, self.prepared.base,
            )
            checkpoint.prune(self.folder.checkpoints, self.run.checkpoints.keep)

    def _collect(self) -> None:
        for step, grid in self.gallery.collect():
            self.wandb.images(step, grid, self.learner.step)

    def _finish(self) -> None:
        metrics = self.folder.metrics()
        seconds, images = sum(m["seconds"]["total"] for m in metrics), sum(m["images"] for m in metrics)
        result = {
            "steps": metrics[-1]["step"], "lora_digest": self.learner.policy().digest,
            "reward_first": metrics[0]["reward_mean"], "reward_last": metrics[-1]["reward_mean"],
            "images_trained": images, "images_masked": sum(m["images_masked"] for m in metrics),
            "images_per_second": images / seconds, "wall_seconds": seconds,
        }
        with guarded(self.folder.path):
            write(self.folder.result_file, json.dumps(result, indent=1))
        self._report()

    def _report(self) -> None:
        with guarded(self.folder.path):
            write_report(self.folder.path)


def latest_checkpoint(path: Path) -> Path:
    """A checkpoint folder as given, or the newest of a run folder; raises CheckpointError."""
    if (path / checkpoint.MANIFEST).is_file():
        return path
    found = checkpoint.steps(path / "checkpoints")
    if not found:
        raise CheckpointError(f"{path} is neither a checkpoint nor a run folder with one.")
    return found[-1]
