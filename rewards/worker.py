"""One reward in one process, and the guard around it.

Consumes `Images`, produces `Scores`; gives the reward at most its timeout. A reward that raises or takes too long gives
no score and a reason, so that its images are masked; one that breaks its contract (another number of scores, something
that is no number, NaN, infinity) stops the run, since every number after it would be wrong.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddpo.config import RewardConfig
from ddpo.deadline import deadline
from ddpo.errors import RewardError
from ddpo.types import Images, Scores
from rewards import function, jpeg

BUILT_IN: dict[str, function.RewardFunction] = {
    "compressibility": jpeg.compressibility,
    "incompressibility": jpeg.incompressibility,
}


class RewardWorker:
    """r(x_0, c) for one entry [rewards.NAME]; `source` is the text of a user's file, empty for built-in kinds."""

    def __init__(self, name: str, config: RewardConfig, source: str) -> None:
        self.name, self.config = name, config
        self.reward = BUILT_IN.get(config.kind) or function.load(source, config.path, config.function)

    def score(self, images: Images) -> Scores:
        """Score one chunk; raises RewardError where the contract is broken."""
        start = time.perf_counter()
        try:
            with deadline(self.config.timeout, f"reward {self.name!r}"):
                answer = self.reward(images.pixels_BYX3, list(images.text), [dict(m) for m in images.metadata])
        except (Exception, SystemExit) as error:  # any failure of a reward means the same: no score for these images
            reason = f"reward {self.name!r} failed: {function.explain(error, self.config.path)}"
            return Scores(images.ids, {}, dict.fromkeys(images.ids, reason), {}, time.perf_counter() - start)
        values, info = self._checked(answer, len(images.ids))
        scores = dict(zip(images.ids, values, strict=True))
        return Scores(images.ids, scores, {}, info, time.perf_counter() - start)

    def _checked(self, answer: Any, count: int) -> tuple[list[float], Mapping[str, Sequence[Any]]]:
        if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict)):
            raise RewardError(
                f"reward {self.name!r} returned {type(answer).__name__}; return a pair (scores, info), where info is "
                "a dictionary, {} if there is nothing to log."
            )
        values = self._numbers(answer[0])
        if len(values) != count:
            raise RewardError(
                f"reward {self.name!r} returned {len(values)} scores for {count} images; which image a score belongs "
                "to is then unknown. Return one per image, in order."
            )
        bad = [(index, value) for index, value in enumerate(values) if not math.isfinite(value)]
        if bad:
            raise RewardError(
                f"reward {self.name!r} returned {bad[0][1]} for image {bad[0][0]} of its chunk ({len(bad)} of {count} "
                "are not finite); one such number spoils every advantage of its prompt. To give no score, raise."
            )
        return values, answer[1]

    def _numbers(self, scores: Any) -> list[float]:
        try:
            if hasattr(scores, "detach"):
                scores = scores.detach().cpu().double().numpy()
            return np.asarray(scores, dtype=np.float64).reshape(-1).tolist()
        except (TypeError, ValueError, RuntimeError):
            raise RewardError(f"reward {self.name!r} returned scores that are no numbers: {scores!r:.100}.") from None
