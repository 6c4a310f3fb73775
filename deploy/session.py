"""One call of `ddpo train` while it runs: the main loop, and all that happens between its steps.

Consumes the pools and a checkpoint, produces the run folder's files; waits for the loop and for the grids.
"""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.prompts import Draw
from ddpo import loop
from ddpo.advantage import advantage
from ddpo.config import chunks
from ddpo.errors import Interrupted, Stopped
from ddpo.types import Prompts, Report, Scored
from ddpo.work import LOGS
from deploy import advice, ledger
from deploy.board import Board
from deploy.folder import RunFolder, guarded, write
from deploy.gallery import Gallery
from deploy.guard import Fall, Guard, mark_best
from deploy.interrupt import Stop
from deploy.log import Progress, Wandb, clock, record
from deploy.machines import Machines
from deploy.noise import rounding_note
from deploy.policies import keep
from deploy.prepare import Prepared
from deploy.report import write_report
from deploy.watchdog import Watchdog
from learner import checkpoint
from learner.checkpoint import Checkpoint


class Overoptimised(Exception):
    """The guard ends the run."""

    def __init__(self, fall: Fall) -> None:
        self.fall = fall


class Session:
    """One call of `ddpo train`: from a checkpoint or the start, to the last step or an interrupt."""

    def __init__(
        self, prepared: Prepared, folder: RunFolder, samplers: Any, rewards: Any, learner: Any, fetch: Any, stop: Stop,
        wandb: Wandb, board: Board | None, machines: Machines,
    ) -> None:
        self.prepared, self.run, self.folder, self.stop, self.wandb = prepared, prepared.run, folder, stop, wandb
        self.samplers, self.rewards, self.learner, self.board = samplers, rewards, learner, board
        self.machines, self.known = machines, dict[str, Any]()  # what run.json says of them
        self.draw, self.advantage = Draw(self.run, prepared.prompts), advantage(self.run)
        self.gallery = Gallery(prepared.fixed, samplers, rewards, fetch, folder, lambda text: self.progress.say(text))
        watched = [name for name, reward in self.run.rewards.items() if reward.weight == 0]
        self.guard = Guard(self.run.guard, watched, folder.rows())
        self.moves, self.awaited = 0, ""
        self.kept: Checkpoint | None = None  # what the last step left, where that is small
        self.saved, self.writing, stop.keep = 0, False, self._keep

    def go(self, saved: Checkpoint | None) -> None:
        """Restore, run the main loop, write the result."""
        policies = saved.policies if saved else [self.learner.policy()]
        self.policies = loop.Policies(self.run.lag, policies)
        if saved:
            self.learner.restore(saved.step, saved.learner, [(p.version, p.digest) for p in policies])
            self.advantage.restore(saved.advantage)
        self.progress = Progress(self.run, self.learner.step)
        self._write_machines()
        try:
            with Watchdog(self.run.stall, self._moved, self._stalled, self.folder.stacks_file):
                self._learn(saved)
        finally:
            self.progress.close()

    def _learn(self, saved: Checkpoint | None) -> None:
        self._await("the first grid")
        if self._has_grid(self.learner.step) and not self.gallery.has(self.learner.step):
            self.gallery.request(self.learner.policy())
        self.logging, self.clock = 0.0, time.perf_counter()
        stopped: Fall | None = None
        try:
            loop.run(
                self.run.steps, self.drawn, self.samplers, self.rewards, self.weighed, self.learner, self.policies,
                self.log,
            )
        except Overoptimised as end:
            stopped = end.fall
        self._collect()
        self._finish(stopped)

    def drawn(self, number: int) -> Prompts:
        """c ~ p(c), entered in the ledger before a sampler gets it; the policy that is to draw it is kept."""
        prompts, policy = self.draw(number), self.policies.of_batch(number)
        keep(self.folder, policy, self.run)
        self.folder.append(self.folder.ledger_file, [ledger.drawn(prompts, policy)])
        self._await(f"samples and scores of step {number + 1}")
        return prompts

    def weighed(self, scored: Scored) -> NDArray[np.float64]:
        """A."""
        self._await(f"the learner's update of step {self.learner.step + 1}")
        return self.advantage(scored)

    def log(self, scored: Scored, report: Report) -> None:
        """Everything that happens between two steps, outside the algorithm."""
        self._await(f"files and grids after step {report.version}")
        metrics = self._metrics(scored, report)
        fall = self._enter(scored, metrics)
        if self.stop.requested:  # before anything that may have to be waited for
            self._checkpoint()
        self._tell(metrics, fall)
        start = time.perf_counter()
        step, last = report.version, report.version == self.run.steps
        guarding = fall is not None and self.run.guard.action == "stop" and not last
        due = step % self.run.checkpoints.every == 0 or last or guarding
        if due:
            self._collect()
            self._checkpoint()
        if self._has_grid(step) or guarding:
            self._collect()
            self.gallery.request(self.learner.policy())
        self.logging = time.perf_counter() - start
        if fall and guarding:
            raise Overoptimised(fall)
        if self.stop.requested and not last:
            self._checkpoint()
            self._collect()
            self._report()
            kind = Stopped if self.stop.asked else Interrupted
            raise kind(f"stopped after step {step} of {self.run.steps}; --resume goes on from there.")
        self._await(f"samples and scores of step {step + 1}")

    def _await(self, what: str) -> None:
        """Note what the main loop turns to."""
        self.moves, self.awaited = self.moves + 1, what

    def _moved(self) -> tuple[int, int, int, int]:
        """Differs from what it was wherever anything was drawn, scored, learned or written since."""
        return self.moves, self.samplers.done, self.rewards.done, self.learner.progress

    def _stalled(self, seconds: float) -> None:
        """Say what a run that stands still waits for, and what is there; called in the watchdog's thread."""
        try:
            there = f"{self.samplers.standing()}; {self.rewards.standing()}"
        except TimeoutError:
            there = "the thread that keeps the pools does not answer"
        self.progress.say(
            f"Nothing was drawn, scored or learned for {clock(seconds)}. The run waits for {self.awaited}, and goes on "
            f"waiting. {there}; the learner has learned {self.learner.step} steps. Where this process stands is in "
            f"{self.folder.stacks_file}, what the workers do in their logs ({LOGS}). "
            f"If this is but slow, raise stall = {self.run.stall:g}."
        )

    def _enter(self, scored: Scored, metrics: dict[str, Any]) -> Fall | None:
        """Write the step's lines and then keep what it left, so that no checkpoint is without its lines."""
        self.writing = True
        lines = [*ledger.machines(scored, metrics["step"]), *ledger.fates(scored, metrics["step"])]
        self.folder.append(self.folder.ledger_file, lines)
        self._write_machines()
        self.folder.append(self.folder.metrics_file, [metrics])
        fall = self.guard.see(metrics)
        self.kept = self._state() if self.run.policy.train == "lora" else None
        self.writing = False
        return fall

    def _write_machines(self) -> None:
        """Enter what the workers compute on in run.json, where one of a new kind has come."""
        found = self.machines.table()
        if found != self.known:
            self.folder.add_facts({"workers": found})
            self.known = found

    def _tell(self, metrics: dict[str, Any], fall: Fall | None) -> None:
        self.wandb.scalars(metrics)
        text = self.progress.show(metrics)
        if metrics["step"] == 1 and (note := rounding_note(self.run, metrics)):
            self.progress.say(note)
        if self.board:
            self.board.step(metrics, text, len(self.learner.policy().message))
        if fall:
            ends = self.run.guard.action == "stop"
            advice = "The run ends here (guard.action)." if ends else 'guard.action = "stop" would end the run here.'
            self.progress.say(f"step {fall.step}: {fall}. {advice}")

    def _has_grid(self, step: int) -> bool:
        return step % self.run.images.every == 0 or step == self.run.steps

    def _metrics(self, scored: Scored, report: Report) -> dict[str, Any]:
        """The step's line of metrics.jsonl; "log" is the time since the last line's."""
        now = time.perf_counter()
        total, self.clock = now - self.clock, now
        waiting = max(0.0, total - report.seconds - self.logging)
        seconds = {**scored.seconds, "learn": report.seconds, "wait": waiting, "log": self.logging, "total": total}
        metrics = record(scored, report, report.version * len(scored.prompts.ids), seconds)
        metrics["workers"] = {**self.samplers.workers, **self.rewards.workers}
        return metrics

    def _state(self) -> Checkpoint:
        """All that the last step left."""
        policies = list(self.policies.recent)
        return Checkpoint(self.learner.step, self.learner.state(), policies, self.advantage.state())

    def _keep(self) -> None:
        """Have what the last step left on disk, wherever the run is; where it is writing, it does so itself next."""
        if self.kept and not self.writing:
            self._checkpoint()

    def _checkpoint(self) -> None:
        """Save what the last step left, unless that is done, as by `_keep`."""
        self.writing = True
        if self.saved != (self.kept or self.learner).step:
            self._save(self.kept or self._state())
        self.writing = False

    def _save(self, state: Checkpoint) -> None:
        with guarded(self.folder.checkpoints):
            self.folder.sync()
            checkpoint.save(self.folder.checkpoints, state, self.run, self.prepared.base)
            if self.run.checkpoints.best:
                measure, window = self.run.checkpoints.best, self.run.guard.window
                mark_best(self.folder.checkpoints, state.step, self.guard.rows, measure, window)
            checkpoint.prune(self.folder.checkpoints, self.run.checkpoints.keep)
        self.saved = state.step

    def _collect(self) -> None:
        for step, grid in self.gallery.collect():
            self.wandb.images(step, grid, self.learner.step)

    def _finish(self, stopped: Fall | None) -> None:
        metrics = self.folder.metrics()
        seconds, images = sum(m["seconds"]["total"] for m in metrics), sum(m["images"] for m in metrics)
        result = {
            "steps": metrics[-1]["step"], "lora_digest": self.learner.policy().digest,
            "reward_first": metrics[0]["reward_mean"], "reward_last": metrics[-1]["reward_mean"],
            "images_trained": images, "images_masked": sum(m["images_masked"] for m in metrics),
            "images_per_second": images / seconds, "wall_seconds": seconds,
            **({"stopped": str(stopped)} if stopped else {}),
        }
        with guarded(self.folder.path):
            write(self.folder.result_file, json.dumps(result, indent=1))
        together = advice.share_gpu(self.run.actors.gpus, self.run.learner.gpus)
        if limit := advice.of(metrics, self.run.lag, chunks(self.run), together):
            self.progress.say(f"What limits this run: {limit}.")
        self._report()

    def _report(self) -> None:
        with guarded(self.folder.path):
            write_report(self.folder.path)
