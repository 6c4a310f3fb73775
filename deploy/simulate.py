"""What a run would do on more machines than are here, by its own main loop and pools on virtual time.

Consumes a `Run` and the times of its stages, produces throughput, idle shares, staleness and bytes moved; waits for
nothing. Only who works is simulated: a worker that sleeps in the place of one that draws. What the driver does for a
call is a time of its own, spent one call after the other, as in the one process that the driver is.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors.pooled import PooledSamplers
from actors.prompts import Draw
from ddpo import loop
from ddpo.base import BaseModel
from ddpo.config import Run
from ddpo.errors import InputError
from ddpo.stages import stages
from ddpo.types import Policy, Prompt, Receipt, Report, Scored, Scores
from ddpo.work import Call
from deploy.planning.network import network
from deploy.prepare import chunk_bytes
from deploy.virtual import VirtualControl
from rewards.pooled import PooledRewards

STEPS = 40  # that are simulated, at most
NOTHING: dict[str, Any] = dict.fromkeys((part.name for part in dataclasses.fields(Report)), 0.0)


@dataclass(frozen=True)
class Times:
    """Seconds of the stages, and what moving costs.

    sample, rewards: of one chunk, of rewards by pool; learn: of one step; call: of the driver, for one call of a worker
    bandwidth: bytes a second into one node; policy, chunk: bytes of a policy and of a chunk's trajectory
    """

    sample: float
    learn: float
    rewards: Mapping[str, float]
    call: float = 0.0
    bandwidth: float = float("inf")
    policy: float = 0.0
    chunk: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What a simulated run did.

    workers: the most of each pool
    idle:    shares of the time that a pool's workers were there; the learner's is of a step
    driver:  the busy share of the whole time
    lag:     mean over the steps
    bytes_per_step: see deploy.planning.network
    """

    workers: Mapping[str, int]
    seconds_per_step: float
    images_per_second: float
    idle: Mapping[str, float]
    driver: float
    lag: float
    bytes_per_step: float


@dataclass
class Driver:
    """The one process through which all calls go."""

    call: float
    busy: float = 0.0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def spend(self) -> None:
        """Handle one call."""
        if self.call:
            async with self.turn:
                await asyncio.sleep(self.call)
                self.busy += self.call


class Sleeper:
    """A worker that takes its time and answers as the real one would, with nothing in it."""

    def __init__(self, times: Times, driver: Driver, seconds: float) -> None:
        self.times, self.driver, self.seconds, self.version = times, driver, seconds, -1
        self.since, self.until = asyncio.get_running_loop().time(), float("inf")

    async def ready(self) -> None:
        """At once."""

    async def run(self, call: Call) -> list[Any]:
        """Sleep as long as the stage takes, after the policy has come where it is new."""
        await self.driver.spend()
        if call.method != "sample":
            await asyncio.sleep(self.seconds)
            return [call.arguments[0]]
        part, policy = call.arguments
        if policy.version != self.version:
            self.version = policy.version
            await asyncio.sleep(self.times.policy / self.times.bandwidth)
        await asyncio.sleep(self.seconds)
        ids, zeros = part.ids, np.zeros(len(part.ids))
        scores = Scores(ids, dict.fromkeys(ids, 0.0), {}, {}, {})
        return [scores, None, Receipt(ids, policy.version, policy.digest, self.seconds, zeros, ())]

    def kill(self) -> None:
        """Leave the pool."""
        self.until = asyncio.get_running_loop().time()


@dataclass(frozen=True)
class SleepingStaff:
    """deploy.staff.Staff whose workers sleep. hired: all that ever were there, by pool."""

    times: Times
    driver: Driver
    hired: dict[str, list[Sleeper]] = field(default_factory=dict)

    def put(self, value: Any) -> Any:
        """The value itself."""
        return value

    def hire(
        self, role: str, kind: type, arguments: tuple[Any, ...], wants: Any, timeout: float
    ) -> Callable[[int], Sleeper]:
        """A sleeper with the role's time."""
        name = role.partition(":")[2]
        seconds = self.times.rewards[name] if name else self.times.sample
        crew = self.hired.setdefault(name or "samplers", [])

        def begin(number: int) -> Sleeper:
            crew.append(Sleeper(self.times, self.driver, seconds))
            return crew[-1]

        return begin

    def presence(self, name: str, end: float) -> float:
        """Seconds that a pool's workers were there until `end`, summed over them."""
        return sum(min(worker.until, end) - worker.since for worker in self.hired[name])


class SleepingLearner:
    """The main loop's learner, which only takes time: for the trajectories to come, then for the update."""

    def __init__(self, sleep: Callable[[float], None], times: Times) -> None:
        self.sleep, self.times, self.step, self.lags = sleep, times, 0, list[int]()

    def update(self, scored: Scored, advantages_B: Any) -> Report:
        """Sleep through one step."""
        self.lags.append(self.step - scored.chunks[0].receipt.version)
        self.sleep(len(scored.chunks) * self.times.chunk / self.times.bandwidth + self.times.learn)
        self.step += 1
        report: dict[str, Any] = NOTHING | {"version": self.step}
        return Report(**report)

    def policy(self) -> Policy:
        """A policy without weights."""
        return Policy(self.step, str(self.step), b"")

    def state(self) -> dict[str, Any]:
        """None."""
        return {}


def simulate(run: Run, base: BaseModel, prompts: list[Prompt], times: Times) -> Outcome:
    """Let the run's own main loop and pools go through `run.steps` steps on virtual time."""
    control, driver = VirtualControl(), Driver(times.call)
    staff = SleepingStaff(times, driver)
    samplers = PooledSamplers(run, base, control, staff)
    rewards = PooledRewards(run, dict.fromkeys(run.rewards, ""), control, staff)
    learner = SleepingLearner(control.sleep, times)
    pools = {"samplers": samplers.pool, **rewards.pools}
    marks, most = list[float](), dict.fromkeys(pools, 0)

    def log(scored: Scored, report: Report) -> None:
        marks.append(control.loop.time())
        most.update({name: max(most[name], len(pool.members)) for name, pool in pools.items()})

    try:
        loop.run(run.steps, Draw(run, prompts), samplers, rewards, lambda scored: scored.rewards_B, learner,
                 loop.Policies(run.lag, [learner.policy()]), log)
        idle = {name: 1 - pool.worked / staff.presence(name, marks[-1]) for name, pool in pools.items()}
        return _outcome(run, base, times, marks, most, idle, driver, learner)
    finally:
        control.close()


def _outcome(
    run: Run, base: BaseModel, times: Times, marks: list[float], workers: Mapping[str, int], idle: Mapping[str, float],
    driver: Driver, learner: SleepingLearner,
) -> Outcome:
    step = (marks[-1] - marks[0]) / (len(marks) - 1)
    moved = sum(network(run, base, times.policy, workers["samplers"]).values())
    return Outcome(workers, step, run.learner.images_per_step / step, {**idle, "learner": 1 - times.learn / step},
                   driver.busy / marks[-1], float(np.mean(learner.lags)), moved)


def short(run: Run) -> Run:
    """The run with as many steps as its figures need."""
    return dataclasses.replace(run, steps=max(2, min(run.steps, STEPS)))


def given(
    run: Run, base: BaseModel, spent: Sequence[str], call: float, bandwidth: float, policy: float
) -> Times:
    """What was given on the command line, and the bytes of a policy; raises InputError where a stage has no time."""
    known: dict[str, float] = {}
    for stage in spent:
        name, _, seconds = stage.partition("=")
        try:
            known[name] = float(seconds)
        except ValueError:
            known[name] = math.nan
        if not 0 <= known[name] < math.inf:
            raise InputError(f"--time {stage}: write STAGE=SECONDS, 0 or more, such as sample=25.")
    pools = [stage.pool for stage in stages(run.rewards)]
    needed = ["sample", "learn", *pools]
    if set(known) != set(needed):
        raise InputError(
            f"--time is needed for {', '.join(needed)}, and for nothing else; given: {', '.join(known) or 'none'}. The "
            "report of a run shows what its stages took, and --like RUN takes them from there."
        )
    rewards = {name: known[name] for name in pools}
    return Times(known["sample"], known["learn"], rewards, call, bandwidth, policy, chunk_bytes(run, base))
