"""`ddpo eval`: puts checkpoint, suites, models and rewards together, in this process and without Ray.

Consumes a `Request`, produces the output folder; waits for the rewards, each chunk at most its timeout.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpo.base import find
from ddpo.config import RewardConfig, Run, plain
from ddpo.errors import InputError
from ddpo.runfile import parse
from ddpo.weights import read
from deploy.evaluation.files import Evaluation, writable
from deploy.evaluation.models import POLICIES, Models, Sampler, samplers
from deploy.evaluation.sentences import sentences, trained
from deploy.evaluation.suites import Suite, choose
from deploy.evaluation.trial import noise, trial
from deploy.facts import facts
from deploy.folder import choose as free_folder
from deploy.log import clock
from deploy.sample import run_of
from deploy.train import latest_checkpoint
from rewards.locate import check
from rewards.pool import LocalReward, sources

MAY_CHANGE = ("rewards.", "policy.base=", "policy.device=")


@dataclass(frozen=True)
class Request:
    """What the command line asks for; `words` are table.key=value, `rewards` kinds with their default models."""

    path: Path
    words: list[str]
    suites: str
    images: int
    seed: int
    rewards: str
    deploy_steps: int | None
    out: Path | None


def evaluate(request: Request) -> Path:
    """Evaluate one checkpoint and return eval.html; raises InputError before anything is drawn where it can."""
    folder = latest_checkpoint(request.path)
    config = _config(folder, request)
    suites, notes = choose(request.suites, config)
    for note in notes:
        print(f"ddpo: {note}", file=sys.stderr, flush=True)
    base, texts = find(config.policy.base), sources(config)
    check(config)
    _check_lengths(suites, base)
    out = _folder(folder, request.out)
    workers = {name: LocalReward(name, reward, texts[name]) for name, reward in config.rewards.items()}
    models, drawn_by = Models(folder, config, base), samplers(config, request.deploy_steps)
    evaluation = Evaluation(out, _facts(folder, config, request))
    progress = Progress(suites, drawn_by, request.images)
    for suite in suites:
        prompts = noise(suite, request.images, request.seed)
        progress.suite = suite.name
        evaluation.add([trial(suite, sampler, prompts, models, workers, progress.tick) for sampler in drawn_by])
    progress.close()
    for name in trained(evaluation.summary):
        print("\n".join(sentences(evaluation.summary, name)))
    return out / "eval.html"


def _config(folder: Path, request: Request) -> Run:
    """The checkpoint's run with the rewards that were asked for; those of `--rewards` are watched."""
    refused = [word for word in request.words if not word.startswith(MAY_CHANGE)]
    if refused:
        raise InputError(
            f"{refused[0]}: a checkpoint is evaluated as it was trained. What can change: rewards.NAME.key=value, "
            "policy.base=FOLDER where the model has moved, policy.device=cpu."
        )
    run = run_of(folder, [])
    kinds = {reward.kind for reward in run.rewards.values()}
    asked = [kind for word in request.rewards.split(",") if (kind := word.strip()) and kind not in kinds]
    more = [f"rewards.{kind}={{kind={kind!r}, weight=0.0}}" for kind in asked]
    return parse(plain(run), [*more, *request.words], str(folder))


def _check_lengths(suites: Sequence[Suite], base: Any) -> None:
    from actors.text import check_lengths

    check_lengths([prompt.text for suite in suites for prompt in suite.prompts], base)


def _folder(checkpoint_folder: Path, out: Path | None) -> Path:
    """--out, else a new one: RUN/eval/STEP of a checkpoint in a run folder, evals/NAME of one that stands alone."""
    within = checkpoint_folder.parent.name == "checkpoints"
    root = checkpoint_folder.parent.parent / "eval" if within else Path("evals")
    path = out or free_folder(root, checkpoint_folder.resolve().name, resume=False).path
    with writable(path):
        path.mkdir(parents=True, exist_ok=True)
        (path / ".probe").touch()
        (path / ".probe").unlink()
    return path


def _facts(folder: Path, config: Run, request: Request) -> dict[str, Any]:
    """The head of summary.json: what was evaluated, how, where."""
    policy = read(max((folder / "policies").glob("*.msgpack")).read_bytes())
    rewards = {
        name: {"kind": reward.kind, "weight": reward.weight, "model": reward.model, "unit": _unit(reward)}
        for name, reward in config.rewards.items()
    }
    return {
        **facts(in_process=True), "run": config.name, "checkpoint": str(folder), "base": config.policy.base,
        "step": policy.version, "digest": policy.digest, "guidance": config.policy.guidance,
        "seed": request.seed, "images_per_prompt": request.images, "rewards": rewards,
    }


def _unit(reward: RewardConfig) -> str:
    return "kB" if reward.kind.endswith("compressibility") else ""


class Progress:
    """What is done and how long the rest takes, on stderr: a line that changes on a terminal, else a line a suite."""

    def __init__(self, suites: Sequence[Suite], drawn_by: Sequence[Sampler], count: int) -> None:
        images = len(POLICIES) * count * sum(len(suite.prompts) for suite in suites)
        self.whole, self.done, self.start = images * sum(s.steps for s in drawn_by), 0, time.perf_counter()
        self.suite, self.said = "", ""
        settings = " and with ".join(sampler.words for sampler in drawn_by)
        print(f"{images * len(drawn_by):,} images to draw: {images:,} with {settings}", file=sys.stderr, flush=True)

    def tick(self, steps: int) -> None:
        """Take in the denoising steps of one chunk."""
        self.done += steps
        left = (time.perf_counter() - self.start) * (self.whole / self.done - 1)
        line = f"{self.suite}: {100 * self.done // self.whole} %, {clock(left)} left"
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        elif self.suite != self.said:
            print(line, file=sys.stderr, flush=True)
        self.said = self.suite

    def close(self) -> None:
        """Leave the terminal's line."""
        if sys.stderr.isatty():
            print(file=sys.stderr, flush=True)
