"""One suite under one sampler: the same prompts and noise drawn by base and tuned model, and scored.

Consumes a suite, the models and the rewards, produces a `Trial`; waits for the rewards, each chunk at most its timeout.

Shape letters: B images, Y X pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpo.config import RewardConfig
from ddpo.pictures import diversity, shift
from ddpo.types import Chunk, Images, Prompts, Receipt, Rollouts, Scored
from deploy.evaluation.models import BASE, POLICIES, TUNED, Models, Sampler
from deploy.evaluation.paired import difference
from deploy.evaluation.suites import Suite
from rewards.batch import combine
from rewards.pool import LocalReward

Tick = Callable[[int], None]  # told how many denoising steps of images were done


@dataclass(frozen=True)
class Trial:
    """images and scored hold what "base" and "tuned" drew, in the same order; shift_B is their distance."""

    suite: Suite
    sampler: Sampler
    prompts: Prompts
    images: Mapping[str, NDArray[np.uint8]]
    scored: Mapping[str, Scored]
    shift_B: NDArray[np.float64]


def noise(suite: Suite, count: int, seed: int) -> Prompts:
    """`count` images of every prompt; an image's noise is fixed by (seed, prompt's place, image's number) alone."""
    places = [(place, number) for place in range(len(suite.prompts)) for number in range(count)]
    chosen = [suite.prompts[place] for place, _ in places]
    states = [np.random.SeedSequence([seed, *place]).generate_state(1, np.uint64)[0] for place in places]
    return Prompts(
        step=-1,
        ids=tuple(range(len(places))),
        text=tuple(prompt.text for prompt in chosen),
        metadata=tuple(prompt.metadata for prompt in chosen),
        seeds=tuple(int(state >> np.uint64(1)) for state in states),
    )


def trial(
    suite: Suite, sampler: Sampler, prompts: Prompts, models: Models, workers: Mapping[str, LocalReward], tick: Tick
) -> Trial:
    """Draw and score both sides, chunk by chunk as in the run; "satisfaction" is asked where there are questions."""
    asked = {
        name: worker for name, worker in workers.items()
        if worker.config.kind != "satisfaction" or suite.has_questions
    }
    chunks = {policy: _draw(policy, prompts, sampler, models, tick) for policy in POLICIES}
    images = {
        policy: np.concatenate([chunk.images.pixels_BYX3 for chunk in drawn]) for policy, drawn in chunks.items()
    }
    scored = {policy: _score(prompts, drawn, asked) for policy, drawn in chunks.items()}
    return Trial(suite, sampler, prompts, images, scored, shift(images[TUNED], images[BASE]))


def _draw(policy: str, prompts: Prompts, sampler: Sampler, models: Models, tick: Tick) -> list[Chunk]:
    chunks = []
    for part in prompts.chunks(models.run.actors.batch):
        pixels_BYX3 = models.draw(policy, part.text, part.seeds, sampler)
        receipt = Receipt(part.ids, 0, "", 0, np.full(len(part.ids), np.nan), ())
        chunks.append(Chunk(Images(part.ids, part.text, part.metadata, pixels_BYX3), None, receipt))
        tick(len(part.ids) * sampler.steps)
    return chunks


def _score(prompts: Prompts, chunks: list[Chunk], workers: Mapping[str, LocalReward]) -> Scored:
    """Here no reward is only watched: of each it is told which images it left without a score."""
    config: dict[str, RewardConfig] = {name: replace(worker.config, weight=1.0) for name, worker in workers.items()}
    scores = {name: [worker.score(chunk.images) for chunk in chunks] for name, worker in workers.items()}
    return combine(Rollouts(prompts, chunks), [chunk.receipt for chunk in chunks], scores, config)


def figures(done: Trial, seed: int) -> dict[str, Any]:
    """The trial's entry in summary.json."""
    base, tuned, text = done.scored[BASE], done.scored[TUNED], done.prompts.text
    found = {name: difference(base.parts[name], tuned.parts[name], text, seed) for name in base.parts}
    spread = {policy: diversity(done.images[policy], text) for policy in POLICIES}
    return {
        "suite": done.suite.name, "title": done.suite.title, "sampler": done.sampler.name,
        "steps": done.sampler.steps, "eta": done.sampler.eta, "images": len(text),
        "rewards": {name: asdict(result) | {"verdict": result.verdict} if result else None
                    for name, result in found.items()},
        "distance_to_base": float(done.shift_B.mean()),
        "diversity": {policy: None if np.isnan(value) else value for policy, value in spread.items()},
        "without_score": sorted({*base.masked.values(), *tuned.masked.values()}),
    }


def rows(done: Trial, policy: str) -> list[dict[str, Any]]:
    """The trial's lines of eval.csv, one an image: scores by reward, what rewards said as REWARD.KEY."""
    scored, prompts = done.scored[policy], done.prompts
    count = len(prompts.text) // len(done.suite.prompts)
    return [
        {
            "suite": done.suite.name, "sampler": done.sampler.name, "steps": done.sampler.steps,
            "eta": done.sampler.eta, "prompt": text, "image": row % count, "seed": prompts.seeds[row],
            "policy": policy, **_said(scored, row),
            "distance_to_base": float(done.shift_B[row]) if policy == TUNED else 0.0,
        }
        for row, text in enumerate(prompts.text)
    ]


def _said(scored: Scored, row: int) -> dict[str, Any]:
    values = {name: None if np.isnan(part[row]) else float(part[row]) for name, part in scored.parts.items()}
    info = {f"{name}.{key}": column[row] for name, table in scored.info.items() for key, column in table.items()}
    return values | info
