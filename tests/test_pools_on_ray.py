"""Pools on Ray under fire: scaled while the run goes on, workers that hang, die over one image or fail now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from learning import in_process, learn, on_cluster

from ddpo import pool
from ddpo.config import Run
from ddpo.errors import InputError, WorkerError
from ddpo.runfile import parse
from deploy import cluster
from deploy.jobs.mailbox import scale
from deploy.prepare import prepare
from rewards import pooled

pytestmark = pytest.mark.ray
JPEG = "    return [-float(len(set(image.tobytes()))) for image in images], {}\n"


@pytest.fixture(scope="module")
def ray_cluster(model: Path) -> Iterator[None]:
    """One cluster for the runs of this module."""
    with cluster.connected(parse({**tiny.run(model), "actors": {"count": 6, "batch": 4}}, [], "test")):
        yield


@pytest.fixture
def rewarded(make_run: Callable[..., Run], tmp_path: Path) -> Callable[..., Run]:
    """rewarded(body, ...): a run whose reward is that of every image's bytes, after `body`."""

    def make(body: str, *overrides: str) -> Run:
        path = tmp_path / "mine.py"
        path.write_text("import os, time\n\ncalls = 0\n\ndef reward(images, prompts, metadata):\n" + body + JPEG)
        kind = f"{{mine={{kind='function', path='{path}', workers=2}}}}"
        return make_run(f"rewards={kind}", "steps=3", "lag=1", *overrides)

    return make


def test_scaled_while_it_goes_on_a_run_gives_the_same_numbers(rewarded, ray_cluster):
    run, seen = rewarded("    time.sleep(0.2)\n", "name=scaled", "steps=6"), []

    def grow(scored: Any, report: Any) -> None:
        wishes = {1: ["mine=4", "samplers=1"], 3: ["mine=1", "samplers=3"]}.get(report.version)
        if wishes:
            threading.Thread(target=lambda: seen.append(scale("scaled", wishes))).start()
        time.sleep(2.0 if wishes else 0.0)

    assert on_cluster(run, grow) == in_process(run)
    first, second = [{state.name: (state.low, state.high) for state in states} for states in seen]
    assert first == {"samplers": (1, 1), "mine": (4, 4)} and second == {"samplers": (3, 3), "mine": (1, 1)}


def test_a_wish_for_a_run_or_pool_that_is_not_there_says_what_is(rewarded, ray_cluster):
    with cluster.pools(prepare(rewarded("", "name=here"))):
        time.sleep(1.5)
        with pytest.raises(InputError, match=r"no run 'there' on this cluster\. On it: .*here"):
            scale("there", ["mine=2"])
        with pytest.raises(InputError, match="the run has no pool 'other'; it has samplers, mine"):
            scale("here", ["other=2"])
        with pytest.raises(InputError, match="at least one worker"):
            scale("here", ["mine=0"])


def test_a_reward_that_fails_on_every_third_call_loses_nothing(rewarded, ray_cluster):
    body = "    global calls\n    calls += 1\n    if calls % 3 == 0:\n        raise OSError('busy')\n"
    steady = rewarded("", "name=steady")
    expected = in_process(steady)
    assert on_cluster(rewarded(body, "name=shaky")) == expected


def test_a_process_that_fails_for_good_is_started_anew_and_loses_nothing(rewarded, ray_cluster, tmp_path, monkeypatch):
    import ray

    kill = ray.kill

    def late(actor, no_restart):  # as under load: what is to be ended still answers for a while
        if no_restart:
            kill(actor)
        else:
            threading.Timer(1.0, kill, (actor,), {"no_restart": False}).start()

    monkeypatch.setattr(ray, "kill", late)
    expected = in_process(rewarded("", "name=sound"))
    body = (
        f"    flag, me = {str(tmp_path / 'flag')!r}, str(os.getpid())\n    if not os.path.exists(flag):\n"
        "        open(flag, 'w').write(me)\n"
        "    if open(flag).read() == me:\n        raise RuntimeError('CUDA error: unspecified launch failure')\n"
    )
    run, masked, lost = rewarded(body, "name=broken"), dict[int, str](), []
    with cluster.pools(prepare(run)) as pools:
        digest = learn(run, pools, lambda scored, report: masked.update(scored.masked))
        lost.append(pools[1].pools["mine"].state().lost)
    assert (digest, masked, lost) == (expected, {}, [1])


def test_a_reward_that_always_fails_masks_with_the_reason_that_one_process_gives(rewarded, ray_cluster):
    body, here, there = "    if prompts[2] == 'odd':\n        raise ValueError('not that')\n", {}, {}
    prompts = {"kind": "list", "items": ["cat"] * 7 + ["odd"]}
    run = parse({**_plain(rewarded(body, "name=odd", "steps=2")), "prompts": prompts}, [], "test")
    in_process(run, lambda scored, report: here.update(scored.masked))
    on_cluster(run, lambda scored, report: there.update(scored.masked))
    assert here == there and "not that" in next(iter(here.values()))


def test_a_process_that_dies_on_its_way_up_is_told_of(rewarded, ray_cluster, monkeypatch):
    from deploy import staff  # which imports Ray, and that reads the token

    for place, name, value in ((staff, "LOOK", 1.0), (staff, "CRASHES", 2), (pool, "STARTS", 2)):
        monkeypatch.setattr(place, name, value)
    run = rewarded("", "name=crashing")
    path = Path(run.rewards["mine"].path)
    path.write_text("import os, sys\nif 'default_worker' in sys.argv[0]:\n    os._exit(1)\n" + path.read_text())
    with pytest.raises(WorkerError, match=r"^2 times in a row no worker of mine .* died 2 times while it"):
        on_cluster(run)


def test_a_worker_that_hangs_is_killed_and_its_chunk_scored_by_another(rewarded, ray_cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(pooled, "GRACE", 2.0)
    expected = in_process(rewarded("", "name=awake"))
    body = (
        f"    flag = {str(tmp_path / 'flag')!r}\n    if not os.path.exists(flag):\n        open(flag, 'w').close()\n"
        "        sum(range(10**13))  # in C, where no signal gets through\n"
    )
    lost = []
    run = rewarded(body, "name=asleep", "rewards.mine.timeout=3")
    with cluster.pools(prepare(run)) as pools:
        digest = learn(run, pools, lambda scored, report: lost.append(pools[1].pools["mine"].state().lost))
    assert lost[-1] == 1 and digest == expected


def test_a_chunk_that_kills_every_worker_is_masked_with_the_reason(rewarded, ray_cluster):
    run, masked = rewarded("    if prompts[2] == 'poison':\n        os._exit(1)\n", "name=poisoned"), {}
    prompts = ["cat"] * 7 + ["poison"]
    run = parse({**_plain(run), "prompts": {"kind": "list", "items": prompts}}, [], "test")
    on_cluster(run, lambda scored, report: masked.update(scored.masked))
    assert masked and all("3 workers of mine were lost over it; the last one died" in why for why in masked.values())


def test_a_sampler_that_can_never_start_ends_the_run_with_its_reason(rewarded, ray_cluster):
    run = rewarded("", "name=stillborn", "policy.lora_targets=['nowhere']")
    with pytest.raises((InputError, WorkerError), match="nowhere"):
        on_cluster(run)


def _plain(run: Run) -> dict[str, Any]:
    from ddpo.config import plain

    return {key: value for key, value in plain(run).items() if key != "prompts"}
