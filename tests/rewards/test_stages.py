"""Stages of one reward as pools of their own: the same scores, a guard around each, and pools that grow alone."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import seeing

from actors.pooled import PooledSamplers
from ddpo.config import RewardConfig, Run, StageConfig, plain
from ddpo.errors import RewardError
from ddpo.pool import State
from ddpo.runfile import parse
from ddpo.stages import stages
from ddpo.types import Captions, Images, Policy, Prompts, Receipt, Scored, Scores
from ddpo.work import Call, Gone, Lost
from deploy.advice import of
from deploy.prepare import arithmetic, prepare
from deploy.simulate import Times, simulate
from deploy.virtual import VirtualControl
from rewards.describe import Describer
from rewards.pool import LocalReward
from rewards.pooled import PooledRewards
from rewards.worker import RewardWorker

PIXELS = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
CHUNK = Images((5, 6, 7), ("a cat", "a dog riding a bike", "a bee"), ({},) * 3, PIXELS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RewardConfig:
    """An alignment reward of tiny models, its stages together."""
    root = tmp_path_factory.mktemp("stages")
    llava, bert = seeing.llava(root / "llava"), seeing.bert(root / "bert")
    return RewardConfig("alignment", model=str(llava), compare=str(bert), layer=1, max_tokens=6, device="cpu")


def staged(whole: RewardConfig, **describe: Any) -> RewardConfig:
    tables = {"describe": StageConfig(device="cpu", **describe), "compare": StageConfig(device="cpu")}
    return dataclasses.replace(whole, stages=tables)


@pytest.mark.parametrize("batch", [0, 2])
def test_in_stages_a_reward_gives_the_same_scores(whole, batch, monkeypatch):
    together, sizes, ask = RewardWorker("seen", whole, "").score(CHUNK), [], Describer.ask

    def listen(self: Describer, images: np.ndarray, questions: list[str]) -> list[str]:
        sizes.append(len(images))
        return ask(self, images, questions)

    monkeypatch.setattr(Describer, "ask", listen)
    apart = LocalReward("seen", staged(whole, batch=batch), "").score(CHUNK)
    assert (apart.ids, apart.values, apart.info) == (together.ids, together.values, together.info)
    assert len(apart.values) == 3 and len(set(apart.values.values())) > 1
    assert list(apart.seconds) == ["describe", "compare"] and list(together.seconds) == ["score"]
    assert sizes == ([2, 1] if batch else [3])


def test_a_worker_loads_its_stages_model_alone(whole, tmp_path):
    config = dataclasses.replace(staged(whole), model=str(tmp_path))
    assert len(RewardWorker("seen", config, "", "compare").compare(said("a cat", "a dog", "a bee")).values) == 3
    with pytest.raises(RewardError, match="did not load as a LLaVA"):
        RewardWorker("seen", config, "", "describe")
    config = dataclasses.replace(staged(whole), compare=str(tmp_path))
    assert all(RewardWorker("seen", config, "", "describe").describe(CHUNK).captions)


def said(*captions: str) -> Captions:
    return Captions(CHUNK.ids, CHUNK.text, CHUNK.metadata, captions, {}, {"describe": 2.0})


def test_an_image_of_which_nothing_was_said_gets_no_score_and_the_others_theirs(whole):
    scores = RewardWorker("seen", staged(whole), "", "compare").compare(said("a cat", "", "a bee"))
    assert list(scores.values) == [5, 7]
    assert scores.failures == {6: "reward 'seen': the description was empty, asked twice"}
    assert scores.seconds["describe"] == 2.0 and scores.seconds["compare"] > 0


def broken(images: Any, prompts: Any, metadata: Any) -> Any:
    raise OSError("no GPU")


def slow(images: Any, prompts: Any, metadata: Any) -> Any:
    time.sleep(60)


@pytest.mark.parametrize("verb", ["describe", "compare"])
@pytest.mark.parametrize(("fault", "why"), [(broken, "failed: OSError: no GPU"), (slow, "took more than 0.2 s")])
def test_a_stage_that_fails_or_hangs_masks_its_images_and_is_named(whole, verb, fault, why):
    reward, start = LocalReward("seen", staged(whole, timeout=0.2), ""), time.monotonic()
    worker = reward.workers[verb]
    worker.reward, worker.settings = fault, StageConfig(timeout=0.2)
    if verb == "compare":
        reward.workers["describe"].settings = StageConfig()
    scores = reward.score(CHUNK)
    assert time.monotonic() - start < 20 and scores.values == {}
    assert set(scores.failures) == {5, 6, 7}
    assert f"{verb} of reward 'seen'" in scores.failures[5] and why in scores.failures[5]


@pytest.mark.parametrize("answer", [["one", "two"], ["one", "two", None]])
def test_a_describer_that_breaks_its_contract_stops_the_run(whole, answer):
    worker = RewardWorker("seen", staged(whole), "", "describe")
    worker.reward = lambda images, prompts, metadata: answer
    with pytest.raises(RewardError, match=r"describe of reward 'seen' returned .* for 3 images"):
        worker.describe(CHUNK)


def test_pools_have_the_names_of_their_stages_unless_two_would(whole):
    apart, jpeg = staged(whole), RewardConfig()
    assert [stage.pool for stage in stages({"seen": apart, "jpeg": jpeg})] == ["describe", "compare", "jpeg"]
    assert [stage.pool for stage in stages({"a": apart, "b": apart})] == [
        "a.describe", "a.compare", "b.describe", "b.compare"
    ]
    assert [stage.pool for stage in stages({"a": apart, "compare": jpeg})] == ["describe", "a.compare", "compare"]
    assert [stage.pool for stage in stages({"describe": whole})] == ["describe"]


# On virtual time, with workers that sleep.

DESCRIBE, COMPARE = 8.0, 0.5


@pytest.fixture
def control() -> Iterator[VirtualControl]:
    control = VirtualControl()
    yield control
    control.close()


@pytest.fixture
def run(make_run: Callable[..., Run]) -> Callable[..., Run]:
    """run(...): a run whose reward has stages, at most 12 workers each."""
    table = "{describe={max_workers=12}, compare={max_workers=12}}"
    reward = f"rewards={{seen={{kind='alignment', stages={table}}}}}"
    return lambda *more: make_run(reward, "learner.images_per_step=64", "actors.count=2", *more)


class Sleeper:
    """A worker that takes its time over a chunk; before each it does what it is told to."""

    def __init__(self, seconds: float, before: Callable[[Call], None]) -> None:
        self.seconds, self.before = seconds, before

    async def ready(self) -> None: ...

    async def run(self, call: Call) -> list[Any]:
        self.before(call)
        await asyncio.sleep(self.seconds)
        given = call.arguments[0]
        if call.method == "sample":
            receipt = Receipt(given.ids, 0, "", 0.0, np.zeros(len(given.ids)), ())
            return [given, None, receipt]
        if call.method == "describe":
            words = tuple(f"image {number}" for number in given.ids)
            return [Captions(given.ids, given.text, given.metadata, words, {}, {"describe": self.seconds})]
        return [Scores(given.ids, dict.fromkeys(given.ids, 1.0), given.failures, {"caption": given.captions},
                       {**given.seconds, "compare": self.seconds})]

    def kill(self) -> None: ...


class SleepingStaff:
    """Sleepers by role; remembers which ones were hired, with what they reserve, and every call."""

    def __init__(self, before: Callable[[Call], None] = lambda call: None) -> None:
        self.before, self.wants, self.calls = before, {}, []

    def put(self, value: Any) -> Any:
        return value

    def hire(self, role: str, kind: type, arguments: tuple[Any, ...], wants: Any, timeout: float) -> Any:
        self.wants[role] = wants
        seconds = {"reward:describe": DESCRIBE, "reward:compare": COMPARE}.get(role, 1.0)
        return lambda number: Sleeper(seconds, self._see)

    def _see(self, call: Call) -> None:
        self.calls.append(call)
        self.before(call)


def score(run: Run, control: VirtualControl, staff: SleepingStaff, batches: int = 1) -> tuple[list[Scored], Any]:
    """Have so many batches drawn and scored at once; the pools stand as the last score leaves them."""
    samplers = PooledSamplers(run, prepare(run).base, control, staff)
    rewards = PooledRewards(run, {"seen": ""}, control, staff)
    count, flying = run.learner.images_per_step, []
    for step in range(batches):
        ids = tuple(range(step * count, (step + 1) * count))
        prompts = Prompts(step, ids, ("a cat",) * count, ({},) * count, ids)
        flying.append(rewards.score(samplers.sample(prompts, Policy(0, "", b""))))
    return [batch.wait() for batch in flying], rewards


@pytest.mark.parametrize("batches", [6, 12])
def test_the_slow_stages_pool_grows_and_the_fast_ones_stays_small(run, control, batches):
    scored, rewards = score(run(), control, SleepingStaff(), batches)
    states: dict[str, State] = {name: pool.state() for name, pool in rewards.pools.items()}
    assert states["describe"].target == 12 and states["compare"].target <= 2
    assert [state.done for state in states.values()] == [batches * 16] * 2
    assert rewards.workers["describe"] == 12
    assert all(not batch.masked and batch.rewards_B.tolist() == [1.0] * 64 for batch in scored)


def test_seconds_are_counted_by_stage_and_the_advice_names_it(run, control):
    scored, _ = score(run(), control, SleepingStaff())
    seconds = dict(scored[0].seconds)
    assert (seconds["score describe"], seconds["score compare"], seconds["score"]) == (128, 8, 136)
    workers = {"samplers": 2, "describe": 2, "compare": 1}
    rows = [{"workers": workers, "seconds": seconds | {"sample": 40.0, "learn": 20.0}}]
    assert str(of(rows, lag=3, chunks=16)).startswith("describe limits you: +5 workers, about ")


def test_images_lost_between_the_stages_are_drawn_and_described_again(run, control):
    described = []

    def lose(call: Call) -> None:
        if call.method == "describe":
            described.append(call.arguments[0].ids)
            if described.count(described[0]) == len(described) == 1:
                raise Gone("its node died")

    staff = SleepingStaff(lose)
    scored, _ = score(run(), control, staff)
    assert not scored[0].masked and described.count(described[0]) == 2 and len(described) == 17
    assert [call.method for call in staff.calls].count("sample") == 17


@pytest.mark.parametrize("verb", ["describe", "compare"])
def test_a_chunk_that_kills_a_stages_workers_is_masked_and_the_stage_is_named(run, control, verb):
    def die(call: Call) -> None:
        if call.method == verb and 9 in call.arguments[0].ids:
            raise Lost("died")

    scored, _ = score(run(), control, SleepingStaff(die))
    why = f"reward 'seen': 3 workers of {verb} were lost over it; the last one died"
    assert scored[0].masked == dict.fromkeys((8, 9, 10, 11), why)
    assert scored[0].info["seen"]["caption"][12] == "image 12"


def test_each_stage_reserves_its_own_and_images_go_to_the_first_alone(run, control):
    staff = SleepingStaff()
    score(run("rewards.seen.stages.describe.gpus=0.4", "rewards.seen.stages.describe.accelerator=T4"), control, staff)
    describe, compare = staff.wants["reward:describe"], staff.wants["reward:compare"]
    assert (describe.gpus, describe.accelerator, compare.gpus, compare.accelerator) == (0.4, "T4", 0.0, "")
    assert all(isinstance(call.arguments[0], Captions) for call in staff.calls if call.method == "compare")


def test_check_and_the_simulator_count_the_stages(run):
    prepared = prepare(run("steps=8", "lag=1", "rewards.seen.stages.describe.workers=4"))
    assert "2 samplers, 5 reward workers" in dict(arithmetic(prepared))["processes"]
    times = Times(0.1, 1.0, {"describe": 2.0, "compare": 0.1})
    found = simulate(parse(plain(prepared.run), ["rewards.seen.stages.describe.max_workers=0"], "test"),
                     prepared.base, prepared.prompts, times)
    assert found.seconds_per_step == pytest.approx(16 * 2.0 / 4, rel=0.05)  # four describe 16 chunks
    assert found.idle["describe"] < 0.1 < 0.7 < found.idle["compare"]
