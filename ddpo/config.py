"""The run file: every fact of a run, stated once, as dataclasses that TOML fills. No torch is imported here.

Sizes are totals over the whole cluster, never per worker. Consumes a TOML file and `table.key=value` overrides,
produces a `Run`; waits for nothing. All mistakes are reported together (ddpo.errors.ConfigError).

Defaults are the paper's (Black et al. 2023, table D.5), with LoRA and its learning rate from the paper's appendix C.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddpo.errors import ConfigError, InputError

Problems = list[tuple[str, str]]


def knob(default: Any, meaning: str, low: float | None = None, above: float | None = None, high: float | None = None,
         choices: tuple[str, ...] = ()) -> Any:
    """A field with its meaning and its range: low <= x, above < x, x <= high, x in choices."""
    limits = {"meaning": meaning, "low": low, "above": above, "high": high, "choices": choices}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=limits)
    return field(default=default, metadata=limits)


@dataclass(frozen=True)
class PolicyConfig:
    """[policy]: the model, how it denoises, and which of its weights learn."""

    base: str = knob("menagerie", "folder or hub name of a Stable Diffusion 1.x or 2.x model, or `menagerie`")
    steps: int = knob(50, "denoising steps T", low=2, high=1000)
    guidance: float = knob(5.0, "classifier-free guidance weight w; 1 turns guidance off", low=1)
    eta: float = knob(1.0, "DDIM noise; 1 is ancestral sampling, 0 has no probabilities", above=0, high=1)
    train: str = knob("lora", "which weights learn", choices=("lora", "full"))
    lora_rank: int = knob(4, "rank of the LoRA matrices", low=1)
    lora_alpha: int = knob(4, "LoRA scale is lora_alpha / lora_rank", low=1)
    lora_targets: list[str] = knob(["to_q", "to_k", "to_v", "to_out.0"], "modules that get LoRA matrices")
    dtype: str = knob("float32", "precision of the frozen weights", choices=("float32", "float16", "bfloat16"))
    device: str = knob("auto", "auto takes cuda where there is one", choices=("auto", "cpu", "cuda"))


@dataclass(frozen=True)
class PromptsConfig:
    """[prompts]: where c ~ p(c) comes from."""

    kind: str = knob("animals", "source of prompts", choices=("animals", "list", "file"))
    items: list[str] = knob([], 'the prompts of kind = "list"')
    path: str = knob("", 'text file of kind = "file", one prompt a line')


@dataclass(frozen=True)
class ActorsConfig:
    """[actors]: the sampler processes."""

    count: int = knob(2, "sampler processes on the cluster", low=1)
    batch: int = knob(8, "images denoised together: the unit of work", low=1)
    threads: int = knob(1, "CPU threads of one sampler; part of the numbers, so fixed here", low=1)
    cpus: float = knob(1.0, "CPUs that Ray reserves for one sampler", low=0)
    gpus: float = knob(0.0, "GPUs that Ray reserves for one sampler; fractions share one", low=0)
    timeout: float = knob(600.0, "seconds one chunk may take", above=0)


@dataclass(frozen=True)
class RewardConfig:
    """[rewards.NAME]: one part of r(x, c)."""

    kind: str = knob("compressibility", "which reward",
                     choices=("compressibility", "incompressibility", "function"))
    weight: float = knob(1.0, "weight in the sum that is optimised")
    workers: int = knob(1, "scoring processes on the cluster", low=1)
    path: str = knob("", 'Python file of kind = "function"')
    function: str = knob("reward", "name of the function in that file")
    cpus: float = knob(1.0, "CPUs that Ray reserves for one worker", low=0)
    gpus: float = knob(0.0, "GPUs that Ray reserves for one worker", low=0)
    timeout: float = knob(120.0, "seconds one chunk may take before its images are masked", above=0)


@dataclass(frozen=True)
class AdvantageConfig:
    """[advantage]: A = (r - mean) / std, per prompt once enough rewards of that prompt are known."""

    per_prompt: bool = knob(True, "keep statistics for every prompt, else use the batch's")
    buffer: int = knob(32, "last rewards kept per prompt", low=1)
    min_count: int = knob(16, "below this many the batch's mean and std are used", low=1)
    clip: float = knob(5.0, "advantages are cut to +- this", above=0)


@dataclass(frozen=True)
class LearnerConfig:
    """[learner]: the policy-gradient update."""

    algorithm: str = knob("ddpo-is", "importance sampling or score function", choices=("ddpo-is", "ddpo-sf"))
    images_per_step: int = knob(256, "images drawn and learned from in one step", low=1, high=2**20)
    minibatch: int = knob(64, "images of one optimizer update", low=1)
    micro_batch: int = knob(16, "(image, timestep) pairs of one forward and backward pass", low=1)
    inner_epochs: int = knob(1, "passes over a batch", low=1)
    timestep_fraction: float = knob(1.0, "share of each image's timesteps that is trained, drawn anew", above=0, high=1)
    clip: float = knob(1e-4, "clip range of p / p_old, in mean log-prob over latent dimensions", above=0)
    lr: float = knob(3e-4, "AdamW learning rate", above=0)
    beta1: float = knob(0.9, "AdamW", low=0, high=0.999999)
    beta2: float = knob(0.999, "AdamW", low=0, high=0.999999)
    epsilon: float = knob(1e-8, "AdamW", above=0)
    weight_decay: float = knob(1e-4, "AdamW", low=0)
    max_grad_norm: float = knob(1.0, "gradients are scaled down to this norm", above=0)
    gradient_checkpointing: bool = knob(False, "recompute activations: less memory, about 1.3 times the time")
    threads: int = knob(1, "CPU threads of the learner; part of the numbers, so fixed here", low=1)
    cpus: float = knob(1.0, "CPUs that Ray reserves for the learner", low=0)
    gpus: float = knob(0.0, "GPUs that Ray reserves for the learner", low=0)
    timeout: float = knob(3600.0, "seconds one update may take", above=0)


@dataclass(frozen=True)
class CheckpointsConfig:
    """[checkpoints]: what survives."""

    every: int = knob(10, "steps between checkpoints; the last step always has one", low=1)
    keep: int = knob(3, "newest checkpoints kept", low=1)


@dataclass(frozen=True)
class ImagesConfig:
    """[images]: pictures of fixed prompts from fixed noise, drawn again as the policy changes."""

    every: int = knob(5, "steps between grids; the first and last policy always have one", low=1)
    prompts: list[str] = knob([], "their prompts; empty takes the first ones of the prompt source")
    count: int = knob(8, "tiles of a grid where `prompts` is empty", low=1)
    seed: int = knob(1000, "of their noise", low=0)


@dataclass(frozen=True)
class WandbConfig:
    """[wandb]: Weights & Biases, behind the same log."""

    mode: str = knob("off", "offline writes to the run folder", choices=("off", "offline", "online"))
    project: str = knob("ddpo", "W&B project")


@dataclass(frozen=True)
class RayConfig:
    """[ray]: the cluster."""

    address: str = knob("", "of a running cluster; empty takes RAY_ADDRESS, else starts one on this machine")
    dashboard: bool = knob(False, "serve Ray's dashboard on the cluster that the run starts")
    timeout: float = knob(300.0, "seconds to wait for the cluster and for room on it", above=0)


@dataclass(frozen=True)
class Run:
    """A whole run file."""

    name: str = knob("run", "the run folder is runs/NAME")
    steps: int = knob(100, "batches drawn and learned from", low=1)
    seed: int = knob(0, "fixes prompts, noise, LoRA's start and the order of minibatches", low=0, high=2**32 - 1)
    lag: int = knob(0, "batches sampled ahead; 0 is the paper's synchronous algorithm", low=0)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    actors: ActorsConfig = field(default_factory=ActorsConfig)
    rewards: dict[str, RewardConfig] = field(default_factory=dict)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    ray: RayConfig = field(default_factory=RayConfig)


def load(path: Path, overrides: list[str] | None = None) -> Run:
    """Read a run file, apply `table.key=value` overrides, check everything; raises ConfigError with all problems."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}. Nothing was started; mend that line.") from None
    except OSError as error:
        raise InputError(f"cannot read the run file {path}: {error.strerror}.") from None
    return parse(table, overrides or [], str(path))


def parse(table: Mapping[str, Any], overrides: list[str], source: str) -> Run:
    """Build a Run from a parsed TOML table; `source` names it in messages."""
    problems: Problems = []
    merged = _override(dict(table), overrides, problems)
    run = _build(Run, merged, "", problems)
    if not problems:
        problems += consistency(run)
    if problems:
        raise ConfigError(source, problems)
    return run


def _override(table: dict[str, Any], overrides: list[str], problems: Problems) -> dict[str, Any]:
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            problems.append((text, "an override is written table.key=value, for example learner.lr=1e-4"))
            continue
        *tables, last = key.strip().split(".")
        inner = table
        for name in tables:
            inner[name] = dict(inner[name]) if isinstance(inner.get(name), Mapping) else {}
            inner = inner[name]
        inner[last] = _literal(value.strip())
    return table


def _literal(text: str) -> Any:
    """Read an override's value as TOML, or as plain text where it is none (policy.base=menagerie)."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _build(kind: type, table: Mapping[str, Any], prefix: str, problems: Problems) -> Any:
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in table:
        if key not in fields:
            problems.append((prefix + key, _unknown(key, list(fields))))
    values = {
        key: _value(hints[key], fields[key], table[key], prefix + key, problems) for key in fields if key in table
    }
    return kind(**values)


def _unknown(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f'did you mean "{close[0]}"?' if close else f"known here: {', '.join(known)}"
    return f"unknown key; {hint}"


def _value(hint: Any, spec: dataclasses.Field[Any], value: Any, key: str, problems: Problems) -> Any:
    if dataclasses.is_dataclass(hint) or typing.get_origin(hint) is dict:
        return _table(hint, value, key, problems)
    if not _fits(hint, value):
        problems.append((key, f"{value!r} is {_type_name(type(value))}, expected {_type_name(hint)}"))
    elif complaint := _out_of_range(spec.metadata, value):
        problems.append((key, complaint))
    return float(value) if hint is float and _fits(float, value) else value


def _table(hint: Any, value: Any, key: str, problems: Problems) -> Any:
    if not isinstance(value, Mapping):
        problems.append((key, f"{value!r} should be a table: write [{key}] and its keys below"))
        return {} if typing.get_origin(hint) is dict else hint()
    if typing.get_origin(hint) is not dict:
        return _build(hint, value, f"{key}.", problems)
    if not all(isinstance(part, Mapping) for part in value.values()):
        problems.append((key, f"write a table per entry, for example [{key}.jpeg]"))
        return {}
    inner = typing.get_args(hint)[1]
    return {name: _build(inner, part, f"{key}.{name}.", problems) for name, part in value.items()}


def _fits(hint: Any, value: Any) -> bool:
    if isinstance(hint, types.GenericAlias):
        return isinstance(value, list) and all(_fits(typing.get_args(hint)[0], item) for item in value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)


def _type_name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text in quotes", bool: "true or false",
             list: "a list", dict: "a table"}
    return names.get(hint, "a list of texts" if isinstance(hint, types.GenericAlias) else hint.__name__)


def _out_of_range(limits: Mapping[str, Any], value: Any) -> str | None:
    if limits["choices"] and value not in limits["choices"]:
        close = difflib.get_close_matches(value, limits["choices"], n=1)
        hint = f'; did you mean "{close[0]}"?' if close else ""
        return f'"{value}" is none of {", ".join(limits["choices"])}{hint}'
    if isinstance(value, float) and not abs(value) < float("inf"):
        return f"{value} is not a finite number"
    if limits["low"] is not None and value < limits["low"]:
        return f"{value} is too small; write {limits['low']} or more"
    if limits["above"] is not None and value <= limits["above"]:
        return f"{value} is too small; write more than {limits['above']}"
    if limits["high"] is not None and value > limits["high"]:
        return f"{value} is too large; write {limits['high']} or less"
    return None


def trained_timesteps(run: Run) -> int:
    """Timesteps of one image in one inner epoch: floor(T * fraction), as in ddpo-pytorch."""
    return int(run.policy.steps * run.learner.timestep_fraction)


def consistency(run: Run) -> Problems:
    """What single values cannot show: sizes that do not divide, options that exclude each other."""
    problems: Problems = []
    images, policy, learner = run.learner.images_per_step, run.policy, run.learner
    for key, part in (("actors.batch", run.actors.batch), ("learner.minibatch", learner.minibatch)):
        if images % part:
            problems.append((key, f"{part} does not divide learner.images_per_step = {images}; "
                                  f"write {_nearest_divisors(images, part)}"))
    if trained_timesteps(run) < 1:
        problems.append(("learner.timestep_fraction", f"{learner.timestep_fraction} of policy.steps = {policy.steps} "
                         f"is less than one timestep; write {1 / policy.steps:.3g} or more"))
    if learner.algorithm == "ddpo-sf" and (learner.minibatch != images or learner.inner_epochs != 1):
        problems.append(("learner.algorithm", "ddpo-sf is right for one update per batch only (its gradient needs "
                         f"p = p_old); write learner.minibatch = {images} and learner.inner_epochs = 1, or ddpo-is"))
    if run.advantage.min_count > run.advantage.buffer:
        problems.append(("advantage.min_count", f"{run.advantage.min_count} rewards never fit into advantage.buffer = "
                         f"{run.advantage.buffer}, so per-prompt statistics would never be used"))
    if run.lag >= run.steps:
        problems.append(("lag", f"{run.lag} batches ahead of only {run.steps} steps; write {run.steps - 1} or less"))
    if not run.name or "/" in run.name or run.name.startswith("."):
        problems.append(("name", f"{run.name!r} cannot be a folder's name"))
    return problems + _reward_problems(run) + _prompt_problems(run)


def _reward_problems(run: Run) -> Problems:
    problems: Problems = []
    if not run.rewards:
        problems.append(("rewards", "there is nothing to optimise; write for example [rewards.jpeg] "
                                    'kind = "compressibility"'))
    elif all(reward.weight == 0 for reward in run.rewards.values()):
        problems.append(("rewards", "all weights are 0, so there is nothing to optimise"))
    for name, reward in run.rewards.items():
        if reward.kind == "function" and not reward.path:
            problems.append((f"rewards.{name}.path", 'kind = "function" needs the Python file that holds it'))
    return problems


def _prompt_problems(run: Run) -> Problems:
    prompts = run.prompts
    if prompts.kind == "list" and not any(item.strip() for item in prompts.items):
        return [("prompts.items", 'kind = "list" needs at least one prompt, for example items = ["a cat"]')]
    if prompts.kind == "file" and not prompts.path:
        return [("prompts.path", 'kind = "file" needs the text file, one prompt a line')]
    return []


def _nearest_divisors(whole: int, part: int) -> str:
    divisors = [n for n in range(1, whole + 1) if whole % n == 0]
    lower = max(n for n in divisors if n < part)
    upper = min((n for n in divisors if n > part), default=lower)
    return f"{lower}" if upper == lower else f"{lower} or {upper}"


def plain(run: Run) -> dict[str, Any]:
    """The run as nested dictionaries, every default written out: what config.toml in the run folder holds."""
    return dataclasses.asdict(run)
