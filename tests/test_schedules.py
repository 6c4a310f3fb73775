"""Two of the schedules of `make chaos`, whose seeds were chosen so that together they strike whatever can be struck."""

from __future__ import annotations

import os
import runpy
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import victim
from learning import in_process
from schedule import draw
from summary import NOTHING, summary

from ddpo.runfile import load
from deploy import cluster

SEEDS = {0: 412, 2: 1677}  # by lag


def struck(kind: str, **facts: Any) -> dict[str, Any]:
    return {"kind": kind, "victim": "somebody", "at": 0.0, "learned": 1, **facts}


def test_a_summary_counts_what_was_drawn_and_what_was_struck():
    faults = "driver (at the start + 3.0 s), driver (step 1 + 0.5 s), node (step 2 + 0.1 s), node (step 7 + 1.0 s)"
    strikes = [struck("driver", seconds=9.0), struck("driver", seconds=4.0, left=0.1), struck("node", victim=NOTHING)]
    said = summary([{"schedule": f"#1 Ray; {faults}", "error": "", "struck": strikes}])
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines()}
    assert rows["driver"] == ["2", "2", "0", "1", "4.0", "4.0"]  # the second kill came before the first had an effect
    assert rows["node"] == ["2", "0", "2", "0", "-", "-"]
    assert "4 strikes drawn, 2 struck" in said and "1 strikes at a driver are not in the seconds" in said


def test_the_seeds_still_strike_everything():
    schedules = {lag: draw(seed) for lag, seed in SEEDS.items()}
    kinds = {fault.kind for schedule in schedules.values() for fault in schedule.faults}
    assert kinds == {"sampler", "reward", "learner", "driver", "node", "scale"}
    assert all(schedule.lag == lag and not schedule.alone for lag, schedule in schedules.items())


def test_a_run_near_its_end_is_held_until_the_last_strike_has_struck(model, tmp_path):
    schedule, said = draw(SEEDS[0]), []
    (tmp_path / "model").symlink_to(model)
    victim.write(schedule, tmp_path)
    room = runpy.run_path(str(tmp_path / f"{schedule.seed}.py"))
    thread = threading.Thread(target=lambda: said.append(room["reward"]([np.zeros(2, np.uint8)], ["a cat"], [{}])))
    victim.place(schedule, tmp_path).mkdir(parents=True)
    (victim.place(schedule, tmp_path) / "metrics.jsonl").write_text("{}\n" * victim.HELD)
    victim.hold(schedule, tmp_path).touch()
    thread.start()
    thread.join(1.0)
    assert not said
    victim.hold(schedule, tmp_path).unlink()
    thread.join(10.0)
    assert said == [([-1.0], {})]


@pytest.fixture(scope="module")
def fake() -> Iterator[Any]:
    """The fake cluster of `make chaos`; what it keeps is in a short path, since Ray's sockets lie there."""
    os.environ.update(cluster._private())
    import world

    with tempfile.TemporaryDirectory(prefix="chaos") as parts, world.cluster(Path(parts)) as made:
        yield made


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # ray.cluster_utils leaves its processes' pipes open
@pytest.mark.parametrize("seed", SEEDS.values())
def test_whatever_dies_the_run_ends_with_clean_books_and_its_own_digest(fake, tmp_path, seed):
    import world

    run = world.Disturbed(draw(seed), tmp_path, fake)
    run.go()
    print(summary([{"schedule": str(run.schedule), "error": "", "struck": run.struck}]))
    assert NOTHING not in [strike["victim"] for strike in run.struck]
    victim.check(run.path, in_process(load(run.file)))
