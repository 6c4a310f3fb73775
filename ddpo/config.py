"""The run file: every fact of a run, stated once, as dataclasses that TOML fills. No torch is imported here.

Sizes are totals over the whole cluster, never per worker. ddpo.runfile reads it, ddpo.consistency checks what single
values cannot show.

Defaults are the paper's (Black et al. 2023, table D.5), with LoRA and its learning rate from the paper's appendix C.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

ROLE = "only on nodes with this label `role`, where nodes of the cluster have one; empty: any"
DEVICE = "auto is the GPU that the worker reserves, or in one process the one that is there; else the CPU"


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

    base: str = knob("menagerie", "folder or hub name of a Stable Diffusion 1.x, 2.x or XL model, or `menagerie`")
    steps: int = knob(50, "denoising steps T", low=2, high=1000)
    guidance: float = knob(5.0, "classifier-free guidance weight w; 1 turns guidance off", low=1)
    eta: float = knob(1.0, "DDIM noise; 1 is ancestral sampling, 0 has no probabilities", above=0, high=1)
    train: str = knob("lora", "which weights learn", choices=("lora", "full"))
    lora_rank: int = knob(4, "rank of the LoRA matrices", low=1)
    lora_alpha: int = knob(4, "LoRA scale is lora_alpha / lora_rank", low=1)
    lora_targets: list[str] = knob(["to_q", "to_k", "to_v", "to_out.0"], "modules that get LoRA matrices")
    dtype: str = knob("float32", "precision of the frozen weights", choices=("float32", "float16", "bfloat16"))
    device: str = knob("auto", DEVICE, choices=("auto", "cpu", "cuda"))


@dataclass(frozen=True)
class GpuConfig:
    """[gpu]: how GPUs compute, every one of the run; part of the numbers there, without effect on a CPU."""

    tf32: bool = knob(False, "fp32 products of 10 bits, several times faster and as coarse as float16; half precision "
                      "is not concerned")
    deterministic: bool = knob(True, "the same numbers from the same work, at the price of slower backward passes")
    graphs: bool = knob(True, "launch a network's kernels all at once (CUDA graphs): the same numbers, sooner; one "
                        "more set of activations is kept")
    attention: str = knob("auto", "kernel of attention; auto takes flash, else memory-efficient",
                          choices=("auto", "flash", "efficient", "cudnn"))


@dataclass(frozen=True)
class PromptsConfig:
    """[prompts]: where c ~ p(c) comes from."""

    kind: str = knob("simple_animals", "source of prompts",
                     choices=("simple_animals", "imagenet_animals", "nouns_activities", "counting", "list",
                              "from_file"))
    items: list[str] = knob([], 'the prompts of kind = "list"')
    path: str = knob("", 'file of kind = "from_file": a prompt a line, or .jsonl with metadata')
    nouns: list[str] = knob([], 'of kinds "nouns_activities" and "counting"; empty takes the paper\'s 45 animals')
    activities: list[str] = knob(["washing dishes", "playing chess", "riding a bike"], 'of kind = "nouns_activities"')
    low: int = knob(2, 'fewest of kind = "counting"', low=1)
    high: int = knob(9, 'most of kind = "counting"', low=1)
    repeat: int = knob(1, "images of each prompt that is drawn: the group", low=1)


@dataclass(frozen=True)
class ActorsConfig:
    """[actors]: the sampler processes."""

    count: int = knob(2, "sampler processes on the cluster, at first and at least", low=1)
    max_count: int = knob(0, "most of them, where more would help; 0 keeps to count", low=0)
    batch: int = knob(8, "images denoised together: the unit of work", low=1)
    threads: int = knob(1, "CPU threads of one sampler; part of the numbers, so fixed here", low=1)
    cpus: float = knob(1.0, "CPUs that Ray reserves for one sampler", low=0)
    gpus: float = knob(0.0, "GPUs that Ray reserves for one sampler; fractions share one", low=0)
    role: str = knob("sampler", ROLE)
    accelerator: str = knob("", 'only on nodes with this ray.io/accelerator-type, such as "A100"')
    timeout: float = knob(600.0, "seconds one chunk may take", above=0)


@dataclass(frozen=True)
class StageConfig:
    """[rewards.NAME.stages.STAGE]: one stage of a reward as workers of its own, each with that stage's model alone."""

    workers: int = knob(1, "processes of this stage on the cluster, at first and at least", low=1)
    max_workers: int = knob(0, "most of them, where more would help; 0 keeps to workers", low=0)
    batch: int = knob(0, "images of a chunk that the model takes together; 0 takes all; part of the numbers", low=0)
    device: str = knob("auto", DEVICE, choices=("auto", "cpu", "cuda"))
    threads: int = knob(1, "CPU threads of one worker's torch; part of the numbers, so fixed here", low=1)
    cpus: float = knob(1.0, "CPUs that Ray reserves for one worker", low=0)
    gpus: float = knob(0.0, "GPUs that Ray reserves for one worker; fractions share one", low=0)
    role: str = knob("auto", f"{ROLE}; auto is reward-gpu with gpus, else reward-cpu")
    accelerator: str = knob("", 'only on nodes with this ray.io/accelerator-type, such as "T4"')
    timeout: float = knob(120.0, "seconds this stage may take over one chunk before its images are masked", above=0)


@dataclass(frozen=True)
class RewardConfig:
    """[rewards.NAME]: one part of r(x, c)."""

    kind: str = knob("compressibility", "which reward", choices=(
        "compressibility", "incompressibility", "function", "alignment", "satisfaction", "aesthetic", "clipscore",
        "pickscore", "hpsv2", "imagereward", "diversity", "http",
    ))
    weight: float = knob(1.0, "weight in the sum that is optimised; 0 watches the reward without training on it")
    workers: int = knob(1, "scoring processes on the cluster, at first and at least", low=1)
    max_workers: int = knob(0, "most of them, where more would help; 0 keeps to workers", low=0)
    path: str = knob("", 'Python file of kind = "function"')
    function: str = knob("reward", "name of the function in that file")
    url: str = knob("", 'server of kind = "http", such as http://scorer:8000 (`ddpo serve-reward`)')
    token_file: str = knob("", "file with the server's token; empty takes the environment's DDPO_REWARD_TOKEN")
    batch: int = knob(0, 'images a request of kind = "http"; 0 sends a chunk whole', low=0)
    model: str = knob("", "folder or hub name of the kind's model (LLaVA, CLIP); empty takes the published one")
    processor: str = knob("", "folder or hub name of the model's processor, where the model comes without")
    head: str = knob("", 'file, folder or hub name of the predictor of kind = "aesthetic"')
    compare: str = knob("", 'BERTScore\'s model of kind = "alignment"')
    layer: int = knob(0, "BERTScore's layer; 0 takes the one tuned for a published model", low=0)
    question: str = knob("", 'what kind = "alignment" asks; empty takes the paper\'s')
    max_tokens: int = knob(64, "longest answer of a language model", low=1)
    dtype: str = knob("auto", "precision of the kind's model; auto is float16 on a GPU, float32 on a CPU",
                      choices=("auto", "float32", "float16", "bfloat16", "4bit"))
    device: str = knob("auto", DEVICE, choices=("auto", "cpu", "cuda"))
    threads: int = knob(1, "CPU threads of one worker's torch; part of the numbers, so fixed here", low=1)
    cpus: float = knob(1.0, "CPUs that Ray reserves for one worker", low=0)
    gpus: float = knob(0.0, "GPUs that Ray reserves for one worker; fractions share one", low=0)
    role: str = knob("auto", f"{ROLE}; auto is reward-gpu with gpus, else reward-cpu")
    accelerator: str = knob("", 'only on nodes with this ray.io/accelerator-type, such as "T4"')
    timeout: float = knob(120.0, "seconds one chunk may take before its images are masked", above=0)
    stages: dict[str, StageConfig] = knob({}, "a table a stage makes each a pool of its own; none keeps them together")


LANGUAGE = {"model", "max_tokens", "dtype", "device"}
OPTIONS = {  # of [rewards.NAME] beyond those that every kind has
    "function": {"path", "function"},
    "alignment": LANGUAGE | {"question", "compare", "layer", "stages"},
    "satisfaction": LANGUAGE,
    "aesthetic": {"model", "head", "device"},
    "clipscore": {"model", "dtype", "device"},
    "pickscore": {"model", "processor", "dtype", "device"},
    "hpsv2": {"model", "processor", "dtype", "device"},
    "imagereward": {"model", "processor", "dtype", "device"},
    "http": {"url", "token_file", "batch"},
}
COMMON = {"kind", "weight", "workers", "max_workers", "threads", "cpus", "gpus", "role", "accelerator", "timeout"}
STAGES = {"alignment": ("describe", "compare")}  # in the order in which an image goes through them


@dataclass(frozen=True)
class AdvantageConfig:
    """[advantage]: A = (r - mean) / std, per prompt once enough rewards of that prompt are known."""

    over: str = knob("prompt", "statistics of the prompt's last rewards, of the step's images of one prompt (GRPO), or "
                     "of the whole step", choices=("prompt", "group", "batch"))
    buffer: int = knob(32, "last rewards kept per prompt", low=1)
    min_count: int = knob(16, "below this many the batch's mean and std are used", low=1)
    clip: float = knob(5.0, "advantages are cut to +- this", above=0)
    inverse_temperature: float = knob(0.2, "RWR: weights are softmax of this times the reward, per prompt", above=0)
    kl: float = knob(0.0, "weight of an image's KL(p || p_base), mean over its steps and latent dimensions, that is "
                     "taken from its reward; LoRA only", low=0)
    percentile: float = knob(0.9, "RWR-sparse: images below this quantile of their prompt get weight 0", low=0, high=1)


@dataclass(frozen=True)
class LearnerConfig:
    """[learner]: the policy-gradient update."""

    algorithm: str = knob("ddpo-is", "policy gradient by importance sampling or score function, or reward-weighted "
                          "regression", choices=("ddpo-is", "ddpo-sf", "rwr", "rwr-sparse"))
    images_per_step: int = knob(256, "images drawn and learned from in one step", low=1, high=2**20)
    minibatch: int = knob(64, "images of one optimizer update", low=1)
    micro_batch: int = knob(16, "(image, timestep) pairs of one forward and backward pass", low=1)
    inner_epochs: int = knob(1, "passes over a batch", low=1)
    window: list[int] = knob([], "[first, end) of the chain's steps that are trained, as a Python slice; [] is all")
    timestep_fraction: float = knob(1.0, "share of each image's window that is trained, drawn anew", above=0, high=1)
    clip: float = knob(1e-4, "clip range of p / p_old, in mean log-prob over latent dimensions", above=0)
    old_log_probs: str = knob("sampler", "p_old of the ratio: what the sampler computed with the chain, or once more "
                              "by the learner in its own micro-batches, so that rounding cuts nothing; lag 0 only, for "
                              "a forward of every pair", choices=("sampler", "recompute"))
    correction: str = knob("clip", "of ddpo-is for what lag makes old: clip around the policy that drew the image, "
                           "truncated importance weights without a clip, or both, clipped around the step's start",
                           choices=("clip", "truncate", "decoupled"))
    truncation: float = knob(2.0, "largest importance weight of truncate and decoupled; a ratio of probabilities, so "
                             "the same for every latent size", low=1)
    proximal: str = knob("recompute", "the step's start of decoupled: one more forward of every pair, or interpolated "
                         "between the log-probs of the policies before and after it",
                         choices=("recompute", "loglinear"))
    kl: float = knob(0.0, "weight of KL(p || p_base) in the loss, per latent dimension; LoRA only", low=0)
    ema: float = knob(0.0, "decay of the weights' moving average over updates, which checkpoints export; 0 is none",
                      low=0, high=0.999999)
    lr: float = knob(3e-4, "AdamW learning rate", above=0)
    beta1: float = knob(0.9, "AdamW", low=0, high=0.999999)
    beta2: float = knob(0.999, "AdamW", low=0, high=0.999999)
    epsilon: float = knob(1e-8, "AdamW", above=0)
    weight_decay: float = knob(1e-4, "AdamW", low=0)
    max_grad_norm: float = knob(1.0, "gradients are scaled down to this norm", above=0)
    gradient_checkpointing: bool = knob(False, "recompute activations: less memory, about 1.3 times the time")
    ranks: int = knob(1, "processes on the cluster that share every update, one GPU each; part of the numbers, "
                      "since gradients are added in another order", low=1)
    threads: int = knob(1, "CPU threads of one rank; part of the numbers, so fixed here", low=1)
    cpus: float = knob(1.0, "CPUs that Ray reserves for one rank", low=0)
    gpus: float = knob(0.0, "GPUs that Ray reserves for one rank", low=0)
    role: str = knob("learner", ROLE)
    accelerator: str = knob("", 'only on nodes with this ray.io/accelerator-type, such as "A100"')
    timeout: float = knob(600.0, "seconds without a finished micro-batch after which the learner counts as hung",
                          above=0)


@dataclass(frozen=True)
class CheckpointsConfig:
    """[checkpoints]: what survives."""

    every: int = knob(10, "steps between checkpoints; the last step always has one", low=1)
    keep: int = knob(3, "newest checkpoints kept", low=1)
    policies: str = knob("auto", "policies kept for `ddpo replay`: every one that drew an image, or those in "
                         "checkpoints; auto is all of LoRA's and no others", choices=("auto", "all", "checkpoints"))
    notice: float = knob(30.0, "seconds that SIGTERM gives, as of a spot machine: a step that does not end in half "
                         "of them is left, and what the one before it made is kept (LoRA only)", above=0)
    best: str = knob("", 'also keep the best one, by the mean "reward" or by a part of it, trained on or watched')


@dataclass(frozen=True)
class GuardConfig:
    """[guard]: over-optimisation, that is a watched measure falling while the trained reward rises.

    A measure has fallen by (its best mean over `window` steps - that of the last) / the spread of its images, the
    larger of the first steps' and the last ones'.
    """

    action: str = knob("warn", "what a fall does; stop ends the run with a checkpoint", choices=("off", "warn", "stop"))
    fall: float = knob(0.5, "the fall that is too much, in standard deviations over the images", above=0)
    window: int = knob(8, "steps whose mean is compared", low=1)
    measures: list[str] = knob([], "rewards that must not fall; empty takes all of weight 0")


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
    stall: float = knob(300.0, "seconds without a chunk drawn or scored or a micro-batch learned until the run says "
                        "what it waits for; by default half of what each of these may take", above=0)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    gpu: GpuConfig = field(default_factory=GpuConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    actors: ActorsConfig = field(default_factory=ActorsConfig)
    rewards: dict[str, RewardConfig] = field(default_factory=dict)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    ray: RayConfig = field(default_factory=RayConfig)


def window(run: Run) -> range:
    """Indices of the chain's steps that may be trained, 0 the noisiest."""
    return range(run.policy.steps)[slice(*run.learner.window) if run.learner.window else slice(None)]


def trained_timesteps(run: Run) -> int:
    """Timesteps of one image in one inner epoch: floor(T * fraction) as in ddpo-pytorch, T the window's; RWR 1."""
    if run.learner.algorithm.startswith("rwr"):
        return 1
    return int(len(window(run)) * run.learner.timestep_fraction)


def chunks(run: Run) -> int:
    """Chunks of a step's batch."""
    return run.learner.images_per_step // run.actors.batch


def plain(run: Run) -> dict[str, Any]:
    """The run as nested dictionaries, every default written out: what config.toml in the run folder holds."""
    return dataclasses.asdict(run)
