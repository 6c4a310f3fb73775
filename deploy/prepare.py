"""Everything about a run that can be wrong before a model is loaded, checked in one go.

Consumes a `Run`, produces `Prepared`; waits for the hub where the model is named by hub name, and for the
servers of rewards, which say whether they are there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from actors.prompts import fixed, source
from ddpo.base import BaseModel, find
from ddpo.config import LearnerConfig, Run, plain, trained_timesteps
from ddpo.consistency import idle
from ddpo.errors import InputError
from ddpo.stages import stages
from ddpo.subset import states_held
from ddpo.types import Prompt, Prompts
from deploy.planning.compute import compute, lines, named, on_gpus, too_short
from rewards.locate import check
from rewards.pool import sources

if TYPE_CHECKING:
    from deploy.planning.memory import Counted

PAPER_NATS = 1e-4 * 4 * 64 * 64  # clip range of Black et al. 2023 on Stable Diffusion's latent, in joint log-prob


@dataclass(frozen=True)
class Prepared:
    """A run whose parts are all there."""

    run: Run
    base: BaseModel
    prompts: list[Prompt]
    fixed: Prompts
    reward_sources: dict[str, str]

    @cached_property
    def counted(self) -> Counted:
        """Memory and FLOP of the model under this run; loads torch, and takes a second for every billion weights."""
        from deploy.planning.memory import count

        return count(self.run, self.base)


def prepare(run: Run, weights: bool = True) -> Prepared:
    """Find model (its `weights` too, or what describes it alone), prompts and reward files; raises one InputError that
    tells of all that is wrong. How long prompts may be is checked where the model's tokenizer is there."""
    problems: list[str] = []
    base = _attempt(lambda: find(run.policy.base, weights), problems)
    prompts = _attempt(lambda: source(run.prompts), problems)
    rewards = _attempt(lambda: sources(run), problems)
    _attempt(lambda: check(run), problems)
    if base and rewards:
        _attempt(lambda: _reach(run, rewards, base.image_size), problems)
    shown = _shown(run, prompts or [])
    if base and prompts and not base.described:
        _attempt(lambda: _check_lengths([prompt.text for prompt in [*prompts, *shown]], base), problems)
    if problems or base is None or prompts is None or rewards is None:
        raise InputError("\n".join(problems))
    return Prepared(run, base, prompts, fixed(shown, run.images.seed), rewards)


def check_deadlines(prepared: Prepared, kinds: Mapping[str, Collection[str]] | None = None) -> None:
    """Raise InputError where a chunk or a micro-batch cannot be done in time on the GPUs that the run may get: `kinds`
    by crew, or by the run's own accelerators."""
    run = prepared.run
    if on_gpus(run) and (problems := too_short(run, prepared.counted.work, kinds or named(run))):
        raise InputError("\n".join(problems))


def _attempt(part: Callable[[], Any], problems: list[str]) -> Any:
    try:
        return part()
    except InputError as error:
        problems.append(str(error))
        return None


def _reach(run: Run, tokens: dict[str, str], side: int) -> None:
    if any(reward.kind == "http" for reward in run.rewards.values()):
        from rewards.remote import reach

        reach(run, tokens, side)


def _shown(run: Run, prompts: list[Prompt]) -> list[Prompt]:
    """The prompts of the picture grids, with the metadata that the source has for them."""
    known = {prompt.text: prompt for prompt in prompts}
    return [known.get(text, Prompt(text, {})) for text in run.images.prompts] or prompts[: run.images.count]


def _check_lengths(prompts: list[str], base: BaseModel) -> None:
    from actors.text import check_lengths

    check_lengths(prompts, base)


def arithmetic(prepared: Prepared) -> list[tuple[str, str]]:
    """What the config amounts to: (name, value) lines for `--check`."""
    run, base = prepared.run, prepared.base
    images, trained = run.learner.images_per_step, trained_timesteps(run)
    updates = images // run.learner.minibatch * run.learner.inner_epochs
    pairs = run.learner.minibatch * trained
    passes = 1 if run.policy.guidance == 1 else 2
    chain = chunk_bytes(run, base) / run.actors.batch
    return [
        ("model", f"{base.name}: {base.image_size} px, latent {'x'.join(map(str, base.latent_CHW))} "
                  f"({base.latent_size:,} dimensions), predicts {base.prediction}"),
        ("prompts", f"{len(prepared.prompts)}, about {images / len(prepared.prompts):.2g} images of each in a step"),
        ("images", f"{images} a step in {images // run.actors.batch} chunks of {run.actors.batch}; "
                   f"{images * run.steps:,} reward queries in {run.steps} steps"),
        ("sampling", f"{images * run.policy.steps * passes:,} UNet forwards a step"
                     f" ({run.policy.steps} steps{', each with and without the prompt' if passes == 2 else ''})"),
        ("updates", f"{updates} a step, {updates * run.steps:,} in all, each over {run.learner.minibatch} images x "
                    f"{trained} timesteps = {pairs:,} pairs in {-(-pairs // run.learner.micro_batch)} micro-batches"),
        ("learning", f"{images * trained * passes * run.learner.inner_epochs:,} UNet forwards and backwards a step"
                     f"{_proximal(run.learner)}"),
        ("clip", clip(prepared)),
        ("trajectories", f"{states_held(run):.3g} of {run.policy.steps + 1} states kept, {chain / 1e6:.3g} MB an "
                         f"image, {chain * images * (run.lag + 1) / 1e6:.4g} MB in flight"),
        ("processes", f"{run.actors.count} samplers, {_reward_workers(run)} reward workers, {_ranks(run.learner)}; "
                      f"batches are trained {run.lag} updates late"),
    ]


def chunk_bytes(run: Run, base: BaseModel) -> float:
    """Of a chunk's trajectory: the states that are kept, the prompts' embeddings and the empty prompt's."""
    batch = run.actors.batch
    return 4.0 * (batch * states_held(run) * base.latent_size + (batch + 1) * base.text_size)


def _reward_workers(run: Run) -> int:
    return sum(stage.wants.workers for stage in stages(run.rewards))


def _ranks(learner: LearnerConfig) -> str:
    return "1 learner" if learner.ranks == 1 else f"{learner.ranks} ranks of the learner"


def _proximal(learner: LearnerConfig) -> str:
    """The forwards that the decoupled objective asks for besides."""
    recomputed = "recompute" in (learner.old_log_probs, learner.correction == "decoupled" and learner.proximal)
    return ", and a forward of every pair before the first update" if recomputed else ""


def clip(prepared: Prepared) -> str:
    """What learner.clip amounts to on this model's latent."""
    learner, size = prepared.run.learner, prepared.base.latent_size
    if learner.algorithm != "ddpo-is":
        return f"none; {learner.algorithm} has no ratio"
    if learner.correction == "truncate":
        return f"none; importance weights are cut at {learner.truncation:g}"
    nats = learner.clip * size
    return (
        f"{learner.clip:g} in mean log-prob is {nats:.3g} nats of the joint log-prob over {size:,} dimensions, "
        f"{nats / PAPER_NATS:.2g} times the paper's"
    )


def clip_note(prepared: Prepared) -> str:
    """What to know where the clip range is far from the paper's; empty where it is near, or nothing is clipped."""
    run, size = prepared.run, prepared.base.latent_size
    times = run.learner.clip * size / PAPER_NATS
    if run.learner.algorithm != "ddpo-is" or run.learner.correction == "truncate" or 1 / 2 <= times <= 2:
        return ""
    return (
        f"learner.clip = {clip(prepared)}. The clip range is tied to the latent's size: too wide, and updates leave "
        "the policy that drew the images; too narrow, and most pairs teach nothing. The paper's on this model would be "
        f"{PAPER_NATS / size:.2g}."
    )


def described_note(base: BaseModel) -> str:
    """What to know where only the description that ships with the program is here."""
    return (
        f"{base.name} is described by files that ship with the program, since neither a folder nor the hub gave its "
        "own: whether prompts are too long was not checked, and training downloads it."
    ) if base.described else ""


def idle_notes(run: Run) -> list[str]:
    """What the run file sets to no effect."""
    return [f"{key} = {message}." for key, message in idle(run)]


def render(prepared: Prepared) -> str:
    """The resolved run as TOML, and its arithmetic."""
    import tomlkit

    run = prepared.run
    rows = [*arithmetic(prepared), *lines(compute(run, prepared.counted.work, named(run)))]
    text = [f"  {name:<13}{value}" for name, value in rows]
    text += [f"Note: {note}" for note in filter(None, [described_note(prepared.base), *idle_notes(run)])]
    return tomlkit.dumps(plain(run)) + "\nArithmetic\n" + "\n".join(text)
