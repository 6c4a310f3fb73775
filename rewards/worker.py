"""One reward, or one stage of it, in one process, and the guard around it.

Consumes `Images`, produces `Scores`; of a reward in stages, `Images` become `Captions` and these `Scores`. Gives each
at most its timeout. One that raises is asked again, so that a passing trouble loses nothing; one that goes on raising
or takes too long gives no score and a reason, so that its images are masked, as is an image whose score is None; one
that breaks its contract (another number of scores or captions, something that is no number, NaN, infinity) stops the
run, since every number after it would be wrong.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from ddpo.config import GpuConfig, RewardConfig
from ddpo.deadline import deadline
from ddpo.errors import ContractError, DeadlineError, RewardError, ServerError
from ddpo.stages import WHOLE, settings
from ddpo.types import Captions, Images, Scores
from rewards import function
from rewards.kinds import make

TRIES = 3  # of a reward that raises, within its timeout
MISSING = "missing"  # key of info: why an image's score is None


class RewardWorker:
    """r(x_0, c) for one entry [rewards.NAME], or the stage of it that does `verb`; `source` is what
    rewards.pool.sources read for it; `gpu` is the run's [gpu]."""

    def __init__(
        self, name: str, config: RewardConfig, source: str, verb: str = WHOLE, gpu: GpuConfig | None = None
    ) -> None:
        self.name, self.config, self.verb, self.settings = name, config, verb, settings(config, verb)
        self.title = f"reward {name!r}" if verb == WHOLE else f"{verb} of reward {name!r}"
        self.reward = make(config, source, verb)
        if "torch" in sys.modules:
            from ddpo.backends import set_backends

            set_backends(gpu or GpuConfig())

    def score(self, images: Images) -> Scores:
        """Score one chunk; raises RewardError where the contract is broken."""
        return self._score(images, images.pixels_BYX3, {})

    def describe(self, images: Images) -> Captions:
        """Say of each image of a chunk what is in it; raises RewardError where the contract is broken."""
        if not images.ids:  # none could be drawn
            return Captions((), (), (), (), {}, {})
        answer, failures, seconds = self._guarded(images, images.pixels_BYX3)
        texts = () if failures else self._texts(answer, len(images.ids))
        return Captions(images.ids, images.text, images.metadata, texts, failures, seconds)

    def compare(self, said: Captions) -> Scores:
        """Score what was said of a chunk, if anything was; raises RewardError where the contract is broken."""
        if said.failures:
            return Scores(said.ids, {}, said.failures, {}, said.seconds)
        return self._score(said, said.captions, said.seconds)

    def _score(self, chunk: Images | Captions, seen: Any, before: Mapping[str, float]) -> Scores:
        if not chunk.ids:  # none could be drawn
            return Scores((), {}, {}, {}, before)
        answer, failures, seconds = self._guarded(chunk, seen)
        spent = {**before, **seconds}
        if failures:
            return Scores(chunk.ids, {}, failures, {}, spent)
        values, info = self._checked(answer, len(chunk.ids))
        reasons = info.pop(MISSING, [None] * len(values))
        rows = list(zip(chunk.ids, values, reasons, strict=True))
        scores = {image: value for image, value, _ in rows if value is not None}
        failures = {
            image: f"reward {self.name!r}: {reason or 'gave None, that is no score'}"
            for image, value, reason in rows if value is None
        }
        return Scores(chunk.ids, scores, failures, info, spent)

    def _guarded(self, chunk: Images | Captions, seen: Any) -> tuple[Any, dict[int, str], dict[str, float]]:
        """The reward's answer, or for every image why there is none; and the seconds it took."""
        start, answer, failures = time.perf_counter(), None, {}
        try:
            with deadline(self.settings.timeout, self.title), _threads(self.settings.threads):
                answer = self._ask(chunk, seen)
        except ContractError as error:
            raise ContractError(f"{self.title}: {error}") from None
        except (Exception, SystemExit) as error:  # any failure of a reward means the same: no score for these images
            reason = f"{self.title} failed: {function.explain(error, self.config.path)}"
            final = isinstance(error, DeadlineError | ServerError)
            failures = dict.fromkeys(chunk.ids, reason if final else self._given_up(reason))
        return answer, failures, {self.verb: time.perf_counter() - start}

    def _given_up(self, reason: str) -> str:
        """What is said of the images when a reward goes on raising; where there are other processes, they may try."""
        return reason

    def _ask(self, chunk: Images | Captions, seen: Any) -> Any:
        for _ in range(TRIES - 1):
            try:
                return self._call(chunk, seen)
            except (DeadlineError, ContractError, ServerError):  # of these no second try is better than the first
                raise
            except Exception:  # whatever it was, it may pass
                continue
        return self._call(chunk, seen)

    def _call(self, chunk: Images | Captions, seen: Any) -> Any:
        return self.reward(seen, list(chunk.text), [dict(m) for m in chunk.metadata])

    def _texts(self, answer: Any, count: int) -> tuple[str, ...]:
        if len(answer) != count or not all(isinstance(text, str) for text in answer):
            raise RewardError(
                f"{self.title} returned {answer!r:.100} for {count} images; which image a text belongs to is then "
                "unknown. Return one text per image, in order."
            )
        return tuple(answer)

    def _checked(self, answer: Any, count: int) -> tuple[list[float | None], dict[str, list[Any]]]:
        if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict)):
            raise RewardError(
                f"{self.title} returned {type(answer).__name__}; return a pair (scores, info), where info is "
                "a dictionary, {} if there is nothing to log."
            )
        values = self._numbers(answer[0])
        if len(values) != count:
            raise RewardError(
                f"{self.title} returned {len(values)} scores for {count} images; which image a score belongs "
                "to is then unknown. Return one per image, in order."
            )
        bad = [(index, value) for index, value in enumerate(values) if value is not None and not math.isfinite(value)]
        if bad:
            raise RewardError(
                f"{self.title} returned {bad[0][1]} for image {bad[0][0]} of its chunk ({len(bad)} of {count} "
                "are not finite); one such number spoils every advantage of its prompt. To give no score, return None."
            )
        return values, _per_image(answer[1], count)

    def _numbers(self, scores: Any) -> list[float | None]:
        try:
            if hasattr(scores, "detach"):
                scores = scores.detach().cpu().double().numpy()
            if isinstance(scores, np.ndarray) and scores.dtype.kind == "O":
                scores = scores.tolist()
            if isinstance(scores, list | tuple) and any(score is None for score in scores):
                return [None if score is None else float(score) for score in scores]
            return list(np.asarray(scores, dtype=np.float64).reshape(-1).tolist())
        except (TypeError, ValueError, RuntimeError):
            raise RewardError(f"{self.title} returned scores that are no numbers: {scores!r:.100}.") from None


def _threads(count: int) -> AbstractContextManager[None]:
    """A fixed number of torch's threads, where torch is loaded: on Ray and in one process the same numbers."""
    if "torch" not in sys.modules:
        return nullcontext()
    from ddpo.threads import threads

    return threads(count)


def _per_image(info: Mapping[str, Any], count: int) -> dict[str, list[Any]]:
    """What has one number, text or None per image, fit for JSON (None for NaN); the rest a reward keeps to itself."""
    found: dict[str, list[Any]] = {}
    for key, values in info.items():
        plain = values.tolist() if hasattr(values, "tolist") else values
        if isinstance(plain, list | tuple) and len(plain) == count:
            rows = [value.item() if hasattr(value, "item") else value for value in plain]
            if all(value is None or isinstance(value, str | int | float) for value in rows):
                found[str(key)] = [None if isinstance(row, float) and not math.isfinite(row) else row for row in rows]
    return found
