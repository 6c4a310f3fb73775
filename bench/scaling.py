"""`python -m bench.scaling`: the simulator against Ray with sleeping workers, from 1 to 32 of them.

Consumes nothing, prints a table; waits for Ray. The same main loop and pools in both; sampling, scoring and learning
take set times, so what differs is what the simulator leaves out.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from actors.pooled import PooledSamplers
from actors.prompts import Draw
from bench.sleeper import SleepingWorker
from ddpo import loop
from ddpo.config import Run
from ddpo.control import ControlThread
from deploy import cluster
from deploy.prepare import Prepared, prepare
from deploy.recipes import find
from deploy.simulate import SleepingLearner, Times, simulate
from rewards.pooled import PooledRewards

SAMPLE, SCORE, LEARN, STEPS, ROUNDS = 1.0, 0.05, 0.5, 8, 2  # seconds of a chunk, a chunk, a step; steps; chunks each
COUNTS = (1, 2, 4, 8, 16, 32)


class Sleepers:
    """deploy.staff.Staff that hires sleepers for every role."""

    def __init__(self, staff: Any) -> None:
        self.staff = staff

    def put(self, value: Any) -> Any:
        """A reference to a value that many calls need."""
        return self.staff.put(value)

    def hire(self, role: str, kind: type, arguments: tuple[Any, ...], wants: Any, timeout: float) -> Any:
        """A sleeper with the role's time."""
        seconds = SAMPLE if role == "sampler" else SCORE
        return self.staff.hire(role, SleepingWorker, (seconds,), wants, timeout)


def wanted(count: int) -> Prepared:
    """The demo with so many samplers and as many chunks a step as they take ROUNDS for; no worker reserves a core."""
    return prepare(find("demo", [
        f"name=scaling-{count}", f"steps={STEPS}", "lag=1", f"actors.count={count}", "actors.cpus=0", "learner.cpus=0",
        f"learner.images_per_step={16 * count * ROUNDS}", "learner.minibatch=16", "rewards.jpeg.cpus=0",
        f"rewards.jpeg.workers={1 + count // 16}",
    ]))


def on_ray(prepared: Prepared, times: Times) -> tuple[float, float]:
    """Seconds a step, after the first ones, and the driver's own seconds of processor time for a chunk."""
    from deploy.staff import Staff  # here, since Ray reads its token when it is imported

    run, control, marks = prepared.run, ControlThread(), list[float]()
    staff = Sleepers(Staff(run.name, lambda threads: {"env_vars": cluster.thread_settings(threads)}))
    samplers = PooledSamplers(run, prepared.base, control, staff)
    rewards = PooledRewards(run, dict.fromkeys(run.rewards, ""), control, staff)
    learner = SleepingLearner(time.sleep, times)
    for pool in (samplers.pool, *rewards.pools.values()):
        control.spawn(pool.staffed()).result(300)
    began = time.process_time()
    loop.run(run.steps, Draw(run, prepared.prompts), samplers, rewards, lambda scored: scored.rewards_B, learner,
             loop.Policies(run.lag, [learner.policy()]), lambda scored, report: marks.append(time.monotonic()))
    spent = (time.process_time() - began) / (STEPS * ROUNDS * run.actors.count)
    control.close()
    return _pace(marks), spent


def _pace(marks: list[float]) -> float:
    return (marks[-1] - marks[1]) / (len(marks) - 2)


def main() -> None:
    """Print the table."""
    counts = [int(word) for word in sys.argv[1:]] or COUNTS
    print("samplers  Ray s/step  simulated  ratio  driver ms/chunk")
    with cluster.connected(_run(max(counts))):
        for count in counts:
            prepared = wanted(count)
            times = Times(SAMPLE, LEARN, {"jpeg": SCORE})
            real, spent = on_ray(prepared, times)
            virtual = simulate(prepared.run, prepared.base, prepared.prompts, times).seconds_per_step
            row = f"{count:>8}  {real:>10.3f}  {virtual:>9.3f}  {real / virtual:>5.3f}  {1000 * spent:>15.2f}"
            print(row, flush=True)


def _run(count: int) -> Run:
    return wanted(count).run


if __name__ == "__main__":
    main()
