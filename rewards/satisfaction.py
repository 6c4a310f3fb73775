"""Strict satisfaction: does the image have what was counted? (Black et al. 2023, appendix A: "ten tigers".)

Consumes images and metadata {"questions": [...], "answers": [...]}, produces the share of questions whose answer is in
the model's reply. Beside it, the typographic probe: whether the image holds written letters or digits, by which a
policy can satisfy the questions without drawing what was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpo.config import RewardConfig
from ddpo.errors import RewardError
from rewards.describe import Describer
from rewards.locate import chosen

PROBE = "Are there any written words, letters or digits in this image? Answer yes or no."
SILENT = "no answer to {question!r}, asked twice"


class Satisfaction:
    """r(x_0, c) = share of the prompt's questions that x_0 answers rightly."""

    def __init__(self, config: RewardConfig) -> None:
        self.describer = Describer(chosen(config, "model"), config.max_tokens, config.dtype, config.device)

    def __call__(
        self, images: NDArray[np.uint8], prompts: Sequence[str], metadata: Sequence[Any]
    ) -> tuple[list[float | None], dict[str, Any]]:
        """Share or None per image; info: the replies, written (1.0 where the probe says yes), why there is no score."""
        asked = [_asked(prompt, table) for prompt, table in zip(prompts, metadata, strict=True)]
        rows = np.repeat(np.arange(len(images)), [len(questions) for questions, _ in asked])
        flat = self.describer.ask(images[rows], [question for questions, _ in asked for question in questions])
        said = iter(flat)
        replies = [[next(said) for _ in questions] for questions, _ in asked]
        probes = self.describer.ask(images, [PROBE] * len(images))
        missing = [_missing(questions, said) for (questions, _), said in zip(asked, replies, strict=True)]
        scores = [
            None if gap else _share(answers, said)
            for (_, answers), said, gap in zip(asked, replies, missing, strict=True)
        ]
        written = [float(probe.lower().startswith("yes")) for probe in probes]
        return scores, {"caption": [" | ".join(said) for said in replies], "written": written, "missing": missing}


def _asked(prompt: str, table: Any) -> tuple[list[str], list[str]]:
    questions, answers = list(table.get("questions", [])), list(table.get("answers", []))
    if not questions or len(questions) != len(answers):
        raise RewardError(
            f'the prompt {prompt!r} comes with no questions: kind = "satisfaction" needs metadata '
            '{"questions": [...], "answers": [...]} of equal length. prompts.kind = "counting" makes them.'
        )
    return questions, answers


def _missing(questions: Sequence[str], said: Sequence[str]) -> str | None:
    empty = [question for question, reply in zip(questions, said, strict=True) if not reply]
    return SILENT.format(question=empty[0]) if empty else None


def _share(answers: Sequence[str], said: Sequence[str]) -> float:
    return float(np.mean([answer.lower() in reply.lower() for answer, reply in zip(answers, said, strict=True)]))
