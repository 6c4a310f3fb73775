"""`python -m bench.scaling`: the simulator against Ray with sleeping workers, from 1 to 32 of them; with `--advice`, a
run on Ray before and after it did what its own advice says.

Consumes nothing, prints a table; waits for Ray. The same main loop and pools in both; sampling, scoring and learning
take set times, so what differs is what the simulator leaves out.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.pooled import PooledSamplers
from actors.prompts import Draw
from bench.sleeper import SleepingWorker
from ddpo import loop
from ddpo.config import Run, chunks
from ddpo.control import ControlThread
from deploy import advice, cluster
from deploy.prepare import Prepared, prepare
from deploy.recipes import find
from deploy.simulate import SleepingLearner, Times, simulate
from rewards.pooled import PooledRewards

SAMPLE, SCORE, LEARN, STEPS, ROUNDS = 1.0, 0.05, 0.5, 8, 2  # seconds of a chunk, a chunk, a step; steps; chunks each
COUNTS = (1, 2, 4, 8, 16, 32)
CASES = (  # seconds of a chunk, a chunk, a step; eight chunks a step; workers; lag
    (Times(0.5, 0.5, {"jpeg": 0.5}), {"samplers": 4, "jpeg": 1}, 2),
    (Times(0.5, 0.5, {"jpeg": 1.5}), {"samplers": 2, "jpeg": 2}, 2),
    (Times(1.5, 0.5, {"jpeg": 0.5}), {"samplers": 2, "jpeg": 3}, 2),
)


@dataclass(frozen=True)
class Found:
    """step: seconds of one, after the first ones; call: the driver's own for a chunk; rows: as of metrics.jsonl."""

    step: float
    call: float
    rows: list[Mapping[str, Any]]


class Sleepers:
    """deploy.staff.Staff that hires sleepers for every role."""

    def __init__(self, staff: Any, times: Times) -> None:
        self.staff, self.times = staff, times

    def put(self, value: Any) -> Any:
        """A reference to a value that many calls need."""
        return self.staff.put(value)

    def hire(self, role: str, kind: type, arguments: tuple[Any, ...], wants: Any, timeout: float) -> Any:
        """A sleeper with the role's time."""
        seconds = self.times.rewards.get(role.removeprefix("reward:"), self.times.sample)
        return self.staff.hire(role, SleepingWorker, (seconds,), wants, timeout)


def wanted(count: int) -> Prepared:
    """The demo with so many samplers and as many chunks a step as they take ROUNDS for; no worker reserves a core."""
    return prepare(find("demo", [
        f"name=scaling-{count}", f"steps={STEPS}", "lag=1", f"actors.count={count}", "actors.cpus=0", "learner.cpus=0",
        f"learner.images_per_step={16 * count * ROUNDS}", "learner.minibatch=16", "rewards.jpeg.cpus=0",
        f"rewards.jpeg.workers={1 + count // 16}",
    ]))


def on_ray(prepared: Prepared, times: Times) -> Found:
    """A run of sleepers."""
    from deploy.staff import Staff  # here, since Ray reads its token when it is imported

    run, control, marks, rows = prepared.run, ControlThread(), list[float](), list[Mapping[str, Any]]()
    staff = Sleepers(Staff(run.name, cluster.environment, lambda crew, found: None), times)
    samplers = PooledSamplers(run, prepared.base, control, staff)
    rewards = PooledRewards(run, dict.fromkeys(run.rewards, ""), control, staff)
    learner = SleepingLearner(time.sleep, times)
    for pool in (samplers.pool, *rewards.pools.values()):
        control.spawn(pool.staffed()).result(300)

    def log(scored: Any, report: Any) -> None:
        marks.append(time.monotonic())
        workers = {**samplers.workers, **rewards.workers}
        rows.append({"workers": workers, "seconds": {**scored.seconds, "learn": times.learn}})

    began = time.process_time()
    loop.run(run.steps, Draw(run, prepared.prompts), samplers, rewards, lambda scored: scored.rewards_B, learner,
             loop.Policies(run.lag, [learner.policy()]), log)
    spent = (time.process_time() - began) / (run.steps * run.learner.images_per_step / run.actors.batch)
    control.close()
    return Found(_pace(marks), spent, rows)


def _pace(marks: list[float]) -> float:
    return (marks[-1] - marks[1]) / (len(marks) - 2)


def advised(times: Times, workers: Mapping[str, int], lag: int) -> str:
    """A run, what it says at its end, the run that does so, and how much faster it is than promised."""
    prepared = _staffed(workers, lag)
    before = on_ray(prepared, times)
    said = advice.of(before.rows, lag, chunks(prepared.run))
    assert said and said.limits in workers
    after = on_ray(_staffed({**workers, said.limits: workers[said.limits] + said.more}, lag), times)
    return f"{before.step:>10.3f}  {after.step:>5.3f}  {said.faster:>4.2f}  {before.step / after.step:>5.2f}  {said}"


def _staffed(workers: Mapping[str, int], lag: int) -> Prepared:
    return prepare(find("demo", [
        f"name=advised-{workers['samplers']}-{workers['jpeg']}", "steps=10", f"lag={lag}", "actors.cpus=0",
        f"actors.count={workers['samplers']}", "learner.cpus=0", "learner.images_per_step=128", "learner.minibatch=16",
        "rewards.jpeg.cpus=0", f"rewards.jpeg.workers={workers['jpeg']}",
    ]))


def _advice_table() -> None:
    print("Ray s/step  after  said  found  the advice")
    with cluster.connected(_run(8)):
        for case in CASES:
            print(advised(*case), flush=True)


def main() -> None:
    """Print a table."""
    if "--advice" in sys.argv:
        _advice_table()
    else:
        _scaling_table([int(word) for word in sys.argv[1:]] or COUNTS)


def _scaling_table(counts: Sequence[int]) -> None:
    print("samplers  Ray s/step  simulated  ratio  driver ms/chunk")
    with cluster.connected(_run(max(counts))):
        for count in counts:
            prepared = wanted(count)
            times = Times(SAMPLE, LEARN, {"jpeg": SCORE})
            found = on_ray(prepared, times)
            virtual = simulate(prepared.run, prepared.base, prepared.prompts, times).seconds_per_step
            ratio, call = found.step / virtual, 1000 * found.call
            print(f"{count:>8}  {found.step:>10.3f}  {virtual:>9.3f}  {ratio:>5.3f}  {call:>15.2f}", flush=True)


def _run(count: int) -> Run:
    return wanted(count).run


if __name__ == "__main__":
    main()
