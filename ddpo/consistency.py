"""What single values of a run file cannot show: sizes that do not divide, options that exclude each other.

Consumes a `Run`, produces (key, message) pairs, each with what to write instead.
"""

from __future__ import annotations

import difflib
from dataclasses import fields
from urllib.parse import urlsplit

from ddpo.config import (
    COMMON,
    OPTIONS,
    STAGES,
    LearnerConfig,
    RewardConfig,
    Run,
    StageConfig,
    trained_timesteps,
    window,
)

Problems = list[tuple[str, str]]
TAKEN = ("samplers", "sample", "learner", "learn")  # names under which a run shows what is no reward


def consistency(run: Run) -> Problems:
    """What single values cannot show: sizes that do not divide, options that exclude each other."""
    problems: Problems = []
    images, policy, learner = run.learner.images_per_step, run.policy, run.learner
    for key, part in (("actors.batch", run.actors.batch), ("learner.minibatch", learner.minibatch)):
        if images % part:
            problems.append((key, f"{part} does not divide learner.images_per_step = {images}; "
                                  f"write {_nearest_divisors(images, part)}"))
    if len(learner.window) not in (0, 2) or not window(run):
        problems.append(("learner.window", f"{learner.window} holds none of {policy.steps} steps; write two numbers as "
                         "in a Python slice, for example [0, -2] for all but the last two, or [] for all"))
    elif trained_timesteps(run) < 1:
        problems.append(("learner.timestep_fraction", f"{learner.timestep_fraction} of {len(window(run))} steps "
                         f"is less than one timestep; write {1 / len(window(run)):.3g} or more"))
    if learner.algorithm == "ddpo-sf" and (learner.minibatch != images or learner.inner_epochs != 1):
        problems.append(("learner.algorithm", "ddpo-sf is right for one update per batch only (its gradient needs "
                         f"p = p_old); write learner.minibatch = {images} and learner.inner_epochs = 1, or ddpo-is"))
    problems += _correction_problems(learner) + _rank_problems(run) + _old_log_prob_problems(run)
    if images % run.prompts.repeat:
        problems.append(("prompts.repeat", f"{run.prompts.repeat} does not divide learner.images_per_step = {images}; "
                         f"write {_nearest_divisors(images, run.prompts.repeat)}"))
    if run.advantage.over == "group" and run.prompts.repeat < 2:
        problems.append(("advantage.over", 'a "group" of one image has no spread; write prompts.repeat = 2 or more, or '
                         'advantage.over = "prompt"'))
    if learner.kl and (policy.train == "full" or learner.algorithm.startswith("rwr")):
        problems.append(("learner.kl", "needs LoRA (the base is the model without it) and DDPO (RWR has no steps to "
                         "compare); write learner.kl = 0"))
    if run.advantage.kl and policy.train == "full":
        problems.append(("advantage.kl", "needs LoRA (the base is the model without it); write advantage.kl = 0"))
    if run.advantage.min_count > run.advantage.buffer:
        problems.append(("advantage.min_count", f"{run.advantage.min_count} rewards never fit into advantage.buffer = "
                         f"{run.advantage.buffer}, so per-prompt statistics would never be used"))
    if run.lag >= run.steps:
        problems.append(("lag", f"{run.lag} batches ahead of only {run.steps} steps; write {run.steps - 1} or less"))
    if not run.name or "/" in run.name or run.name.startswith("."):
        problems.append(("name", f"{run.name!r} cannot be a folder's name"))
    return problems + _reward_problems(run) + _prompt_problems(run) + _pool_problems(run)


def _pool_problems(run: Run) -> Problems:
    limits = [("actors.max_count", run.actors.count, run.actors.max_count)]
    parts: dict[str, RewardConfig | StageConfig] = {f"rewards.{name}": part for name, part in run.rewards.items()}
    parts |= {f"{key}.stages.{name}": stage for key, part in [*parts.items()]
              if isinstance(part, RewardConfig) for name, stage in part.stages.items()}
    limits += [(f"{key}.max_workers", part.workers, part.max_workers) for key, part in parts.items()]
    return [
        (key, f"{most} is less than the {least} to begin with; write {least} or more, or 0 to keep to {least}")
        for key, least, most in limits if 0 < most < least
    ]


def _rank_problems(run: Run) -> Problems:
    """Ranks that no update has work for, or that nothing places on the cluster."""
    learner = run.learner
    pairs = learner.minibatch * trained_timesteps(run)
    parts = -(-pairs // learner.micro_batch)
    if learner.ranks > max(parts, 1):
        return [("learner.ranks", f"{learner.ranks} ranks share the micro-batches of an update, and there are only "
                 f"{parts}: {pairs} pairs in parts of {learner.micro_batch}; write learner.micro_batch = "
                 f"{max(pairs // learner.ranks, 1)} or less, or fewer ranks")]
    if learner.ranks > 1 and not (learner.cpus or learner.gpus):
        return [("learner.ranks", "several ranks are placed by what they reserve; write learner.cpus or learner.gpus")]
    return []


def _old_log_prob_problems(run: Run) -> Problems:
    """What the learner would recompute p_old with is gone, or nothing asks for p_old."""
    if run.learner.old_log_probs == "sampler":
        return []
    if run.lag:
        return [("learner.old_log_probs", f"the learner can recompute log-probs with the weights that it has, and at "
                 f"lag = {run.lag} images are drawn by older ones; write lag = 0, or old_log_probs = \"sampler\"")]
    if run.learner.algorithm != "ddpo-is":
        return [("learner.old_log_probs",
                 f"would be without effect: {run.learner.algorithm} has no ratio; leave it out")]
    return []


def _correction_problems(learner: LearnerConfig) -> Problems:
    """A correction that its algorithm has not, or a part of a correction that this one has not."""
    kind, plain, problems = learner.correction, LearnerConfig(), []
    if kind != "clip" and learner.algorithm != "ddpo-is":
        problems.append(("learner.correction", f'"{kind}" corrects the importance ratios of ddpo-is, and '
                         f'{learner.algorithm} has none; write learner.correction = "clip"'))
    if kind == "clip" and learner.truncation != plain.truncation:
        problems.append(("learner.truncation", f"{learner.truncation:g} would be without effect: \"clip\" has no "
                         'importance weights; write learner.correction = "truncate" or "decoupled", or leave it out'))
    if kind != "decoupled" and learner.proximal != plain.proximal:
        problems.append(("learner.proximal", f'"{learner.proximal}" would be without effect: "{kind}" has no proximal '
                         'policy; write learner.correction = "decoupled", or leave it out'))
    return problems


def idle(run: Run) -> Problems:
    """Values of [learner] that are without effect. No mistakes: what a recipe sets for its own algorithm stays there
    when another is asked of it."""
    learner, plain = run.learner, LearnerConfig()
    if learner.algorithm.startswith("rwr"):
        keys = ("window", "timestep_fraction", "clip")
        reason = f"{learner.algorithm} has no ratio, and regresses on finished images noised anew, not on chains"
    elif learner.algorithm == "ddpo-sf":
        keys, reason = ("clip",), "ddpo-sf has no ratio"
    elif learner.correction == "truncate":
        keys, reason = ("clip",), '"truncate" does not clip; its bound is learner.truncation'
    else:
        return []
    changed = [key for key in keys if getattr(learner, key) != getattr(plain, key)]
    return [(f"learner.{key}", f"{getattr(learner, key)} is without effect: {reason}") for key in changed]


def _reward_problems(run: Run) -> Problems:
    problems: Problems = []
    if not run.rewards:
        problems.append(("rewards", "there is nothing to optimise; write for example [rewards.jpeg] "
                                    'kind = "compressibility"'))
    elif all(reward.weight == 0 for reward in run.rewards.values()):
        problems.append(("rewards", "all weights are 0, so there is nothing to optimise"))
    for key, named in (("guard.measures", run.guard.measures), ("checkpoints.best", [run.checkpoints.best])):
        unknown = [name for name in named if name not in ("", "reward", *run.rewards)]
        if unknown:
            problems.append((key, f"there is no reward {unknown[0]!r}; there are: {', '.join(run.rewards)}"))
    for name, reward in run.rewards.items():
        if name in TAKEN:
            problems.append((f"rewards.{name}", f"{name!r} is the name of a pool or stage of every run; write another"))
        if reward.kind == "function" and not reward.path:
            problems.append((f"rewards.{name}.path", 'kind = "function" needs the Python file that holds it'))
        if reward.kind == "http" and not is_server(reward.url):
            problems.append((f"rewards.{name}.url", f'"{reward.url}" is no server; write its address, for example '
                                                    "http://scorer:8000"))
        if reward.dtype == "4bit" and OPTIONS.get(reward.kind, set()) & {"dtype", "max_tokens"} == {"dtype"}:
            problems.append((f"rewards.{name}.dtype", '"4bit" is for language models; write "float16" or "auto"'))
        problems += _foreign_options(name, reward) + _stage_problems(f"rewards.{name}", reward)
    return problems


def is_server(url: str) -> bool:
    """Whether a URL names a server and nothing else: a password or a query in it would be sent nowhere."""
    try:
        parts = urlsplit(url)
        named = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return named and "@" not in parts.netloc and not parts.query and not parts.fragment


def _stage_problems(key: str, reward: RewardConfig) -> Problems:
    """Stages that the kind has not, stages without a table, and what has no effect beside them."""
    known, given = STAGES.get(reward.kind, ()), reward.stages
    if not given or not known:
        return []
    if unknown := [(f"{key}.stages.{stage}", _no_stage(stage, known)) for stage in given if stage not in known]:
        return unknown
    missing = [
        (f"{key}.stages", f"{stage} has no table, and a reward's stages are all pools of their own or none is; write "
                          f"[{key}.stages.{stage}] as well") for stage in known if stage not in given
    ]
    moved = [
        f.name for f in fields(StageConfig) if f.name in COMMON | OPTIONS[reward.kind]
        and getattr(reward, f.name) != f.default
    ]
    return missing + [
        (f"{key}.{name}", "would be without effect beside stages, which have their own; write it in "
                          + " or ".join(f"[{key}.stages.{stage}]" for stage in known)) for name in moved
    ]


def _no_stage(stage: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(stage, known, n=1)
    return f'unknown stage; did you mean "{close[0]}"?' if close else f"unknown stage; the stages: {', '.join(known)}"


def _foreign_options(name: str, reward: RewardConfig) -> Problems:
    """An option of another kind would be silently without effect."""
    usable = COMMON | OPTIONS.get(reward.kind, set())
    plain = RewardConfig()
    changed = [
        f.name for f in fields(reward) if getattr(reward, f.name) != getattr(plain, f.name) and f.name not in usable
    ]
    known = ", ".join(sorted(usable - {"kind"}))
    return [(f"rewards.{name}.{key}", f'kind = "{reward.kind}" has no {key}; it has: {known}') for key in changed]


def _prompt_problems(run: Run) -> Problems:
    prompts = run.prompts
    if prompts.kind == "list" and not any(item.strip() for item in prompts.items):
        return [("prompts.items", 'kind = "list" needs at least one prompt, for example items = ["a cat"]')]
    if prompts.kind == "from_file" and not prompts.path:
        return [("prompts.path", 'kind = "from_file" needs the text file, one prompt a line')]
    if prompts.kind == "nouns_activities" and not any(activity.strip() for activity in prompts.activities):
        return [("prompts.activities", 'kind = "nouns_activities" needs at least one, for example ["riding a bike"]')]
    if prompts.kind == "counting" and prompts.low > prompts.high:
        return [("prompts.low", f"{prompts.low} is above prompts.high = {prompts.high}")]
    return []


def _nearest_divisors(whole: int, part: int) -> str:
    divisors = [n for n in range(1, whole + 1) if whole % n == 0]
    lower = max(n for n in divisors if n < part)
    upper = min((n for n in divisors if n > part), default=lower)
    return f"{lower}" if upper == lower else f"{lower} or {upper}"
