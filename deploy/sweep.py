"""`ddpo simulate`: a line for every number of samplers and reward workers that a run might have.

Consumes a run, stages' times that were given or that another run measured, and how many workers to try; produces lines
of a table. Waits for the hub (the model's JSON files alone) and for servers of rewards.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Iterator, Sequence

from ddpo.config import Run
from ddpo.errors import InputError
from ddpo.stages import WHOLE, stages
from deploy.planning import memory
from deploy.planning.measured import spent
from deploy.prepare import prepare
from deploy.recipes import find, named
from deploy.simulate import Outcome, given, short, simulate

RANGE = re.compile(r"([1-9][0-9]*)(?:\.\.([1-9][0-9]*))?")


def table(options: argparse.Namespace) -> Iterator[str]:
    """Lines of a table; raises InputError."""
    recipe, changes = named(options.words, "simulate needs a recipe or run file, for example `ddpo simulate demo`.")
    prepared = prepare(find(recipe, changes), weights=False)
    said, notes = spent(prepared.run, options.like, options.time)
    policy = memory.policy_bytes(memory.skeleton(prepared.run, prepared.base))
    times = given(prepared.run, prepared.base, said, options.call, options.bandwidth, policy)
    crews = list(staffings(prepared.run, options.samplers, options.rewards))
    yield from (f"Note: {note}" for note in notes)
    yield _line(["samplers", *times.rewards, "s/step", "images/s", "lag", "GB/step", "driver", "idle"])
    for crew in crews:
        run = short(find(recipe, [*changes, *crew]))
        yield _line(_cells(simulate(run, prepared.base, prepared.prompts, times)))


def _cells(found: Outcome) -> list[str]:
    idle = ", ".join(f"{name} {share:.0%}" for name, share in found.idle.items())
    return [*(f"{count}" for count in found.workers.values()), f"{found.seconds_per_step:.2f}",
            f"{found.images_per_second:.1f}", f"{found.lag:.1f}", f"{found.bytes_per_step / 1e9:.2f}",
            f"{found.driver:.1%}", idle]


def _line(cells: Sequence[str]) -> str:
    return "  ".join([*(f"{cell:>8}" for cell in cells[:-1]), cells[-1]])


def staffings(run: Run, samplers: str, rewards: Sequence[str]) -> Iterator[list[str]]:
    """The changes of every line: each number of samplers with each of reward workers. A pool that is named has just so
    many workers; the others grow as the run lets them. Raises InputError."""
    pools = {stage.pool: f"rewards.{stage.reward}" + ("" if stage.verb == WHOLE else f".stages.{stage.verb}")
             for stage in stages(run.rewards)}
    choices = [[f"actors.count={count}", "actors.max_count=0"] for count in counts(samplers)] if samplers else [[]]
    each = [choices]
    for wish in rewards:
        pool, _, many = wish.partition("=")
        if pool not in pools or not many:
            raise InputError(f"--rewards {wish}: write POOL=COUNTS, such as {next(iter(pools))}=1..8; the run's pools "
                             f"of reward workers are {', '.join(pools)}.")
        each.append([[f"{pools[pool]}.workers={count}", f"{pools[pool]}.max_workers=0"] for count in counts(many)])
    return (list(itertools.chain(*parts)) for parts in itertools.product(*each))


def counts(text: str) -> list[int]:
    """Whole numbers of "1,8,64", and of "1..1024" what doubling gives, with both ends; raises InputError."""
    found: list[int] = []
    for part in text.split(","):
        low, high = (match[1], match[2] or match[1]) if (match := RANGE.fullmatch(part)) else ("1", "0")
        if int(low) > int(high):
            raise InputError(f"{text!r} are no numbers of workers: write some with commas between them, such as "
                             "1,8,64, or a range, such as 1..64, which is 1, 2, 4 and so on up to 64.")
        first, last = int(low), int(high)
        found += [*itertools.takewhile(lambda n, last=last: n < last, (first << k for k in itertools.count())), last]
    return found
