"""What rounding alone does to the ratio p / p_old, said once: before the first update it should be exactly one.

Consumes the first step's figures, produces a sentence; waits for nothing. No torch.
"""

from __future__ import annotations

import math
from typing import Any

from ddpo.config import Run

TOO_MUCH = 0.01  # share of pairs that rounding may cut


def rounding_note(run: Run, metrics: dict[str, Any]) -> str:
    """What to know where sampler and learner, with the same weights, differ by a part of the clip range; empty where
    they agree to a tenth of it, or where the step's images are old, since then they differ for another reason."""
    deltas, cut = metrics["log_prob_delta_by_timestep"], metrics["first_clip_fraction"]
    clips = run.learner.algorithm == "ddpo-is" and run.learner.correction != "truncate"
    if metrics["lag"] or not clips or not deltas or cut is None:
        return ""
    mean, (timestep, most) = sum(deltas.values()) / len(deltas), max(deltas.items(), key=lambda item: item[1])
    if cut == 0 and mean < run.learner.clip / 10:
        return ""
    said = (
        f"Rounding alone moves log-probs by {mean:.2g} between sampler and learner, most at timestep {timestep} "
        f"({most:.2g}); learner.clip is {run.learner.clip:g}, so that {cut:.1%} of the pairs are outside of it before "
        "the first update"
    )
    if run.learner.old_log_probs == "recompute":
        return f"{said}. None is cut: the learner recomputes p_old (learner.old_log_probs)."
    if cut <= TOO_MUCH:
        return f"{said}."
    return f"{said} and teach nothing. {_cures(run, timestep, most / max(mean, math.ulp(0)))}"


def _cures(run: Run, timestep: str, excess: float) -> str:
    """What of this run can be changed, cheapest first."""
    cures = []
    if run.learner.micro_batch != run.actors.batch:
        cures.append(f"learner.micro_batch = actors.batch (the same kernels: {run.learner.micro_batch} and "
                     f"{run.actors.batch} now)")
    if not run.learner.window and excess > 4:
        cures.append(f"learner.window = [0, -2] (timestep {timestep} is {excess:.2g} times as sensitive as the mean)")
    if run.policy.dtype == "bfloat16":
        cures.append('policy.dtype = "float16" (8 times finer)')
    if run.lag == 0:
        cures.append('learner.old_log_probs = "recompute" (one more forward of every pair)')
    return f"Cures, cheapest first: {'; '.join(cures) or 'a wider learner.clip'}."
