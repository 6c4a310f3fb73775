"""`ddpo convert`: a run file out of a configuration of TRL's DDPOTrainer or of kvablack/ddpo-pytorch.

Consumes their options (deploy.foreign), produces TOML, with a comment for all that has no counterpart; waits for
nothing. No torch. docs/moving.md has the same as a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpo.errors import InputError
from ddpo.runfile import parse
from deploy.foreign import TRACKING, assigned, fields

Table = dict[str, Any]
SAME = {  # theirs: ours
    "num_epochs": "steps", "seed": "seed", "save_freq": "checkpoints.every", "num_checkpoint_limit": "checkpoints.keep",
    "pretrained_model": "policy.base", "sample_num_steps": "policy.steps", "sample_eta": "policy.eta",
    "sample_guidance_scale": "policy.guidance", "sample_batch_size": "actors.batch",
    "train_batch_size": "learner.micro_batch", "train_learning_rate": "learner.lr", "train_adam_beta1": "learner.beta1",
    "train_adam_beta2": "learner.beta2", "train_adam_weight_decay": "learner.weight_decay",
    "train_adam_epsilon": "learner.epsilon", "train_max_grad_norm": "learner.max_grad_norm",
    "train_num_inner_epochs": "learner.inner_epochs", "train_clip_range": "learner.clip",
    "train_timestep_fraction": "learner.timestep_fraction", "train_adv_clip_max": "advantage.clip",
    f"{TRACKING}_buffer_size": "advantage.buffer", f"{TRACKING}_min_count": "advantage.min_count",
    "tracker_project_name": "wandb.project",
}
DEFAULTS = {  # ddpo-pytorch's, where they are not the defaults here
    "seed": 42, "save_freq": 20, "num_checkpoint_limit": 5, "mixed_precision": "fp16", "sample_batch_size": 1,
    "pretrained_model": "runwayml/stable-diffusion-v1-5", "sample_num_batches_per_epoch": 2, "train_batch_size": 1,
    "train_gradient_accumulation_steps": 1, TRACKING: True, f"{TRACKING}_buffer_size": 16,
    "prompt_fn": "imagenet_animals", "reward_fn": "jpeg_compressibility",
}
TRLS = {"seed": 0, "save_freq": 1, TRACKING: False, "prompt_fn": "yours", "reward_fn": "yours"}  # where it differs
SIZES = (
    "sample_batch_size", "sample_num_batches_per_epoch", "train_batch_size", "train_gradient_accumulation_steps",
)
DTYPES = {"fp16": "float16", "bf16": "bfloat16", "no": "float32"}
REWARDS = {
    "jpeg_compressibility": "compressibility", "jpeg_incompressibility": "incompressibility",
    "aesthetic_score": "aesthetic", "llava_bertscore": "alignment", "llava_strict_satisfaction": "satisfaction",
}
MOVED = {"runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}  # off the hub: its copy
READ = {*SAME, *DEFAULTS, "use_lora", "run_name", "exp_name", "log_with", "prompt_fn_kwargs"}
OTHERWISE = {  # theirs: the value that asks for nothing special, and what to know of any other
    "train_use_8bit_adam": (False, "AdamW keeps its state in float32"),
    "train_cfg": (True, "what is drawn with guidance is trained with it; policy.guidance = 1 has none"),
    "negative_prompts": ("", "guidance leads away from the empty prompt"),
    "pretrained_revision": ("main", "give policy.base a folder that holds it"),
    "resume_from": ("", "`--resume`; their checkpoints cannot be read"),
    "async_reward_computation": (False, "rewards are always scored beside sampling"),
    "max_workers": (2, "rewards.NAME.workers and max_workers"),
    "logdir": ("logs", "`ddpo train --runs FOLDER`"),
    "allow_tf32": (True, "torch's own setting holds"),
}


def convert(config: str, gpus: int) -> str:
    """The run file of `config`, FILE or FILE.py:FUNCTION, on `gpus` of their GPUs; raises InputError, ConfigError."""
    file, _, function = config.partition(":")
    path, notes = Path(file), []
    python = path.suffix == ".py"
    given = assigned(path, function or "get_config", notes) if python else fields(path)
    theirs = DEFAULTS | ({} if python else TRLS) | given
    changes = _same(theirs) | _sizes(theirs, gpus) | _chosen(theirs) | _prompts(theirs, notes) | _reward(theirs, notes)
    table: Table = {"name": str(theirs.get("run_name") or theirs.get("exp_name") or function or path.stem), "lag": 0}
    for key, value in changes.items():
        _put(table, key, value)
    parse(table, [], config)
    notes += [f"{key} = {value!r}: {_advice(key)}" for key, value in given.items() if _lost(key, value)]
    return _rendered(config, table, notes)


def _same(theirs: Mapping[str, Any]) -> Table:
    found = {ours: theirs[key] for key, ours in SAME.items() if key in theirs}
    return found | {"policy.base": MOVED.get(str(found["policy.base"]), found["policy.base"])}


def _sizes(theirs: Mapping[str, Any], gpus: int) -> Table:
    """Theirs are of one GPU, ours of all."""
    for key in SIZES:
        if not isinstance(theirs[key], int):
            raise InputError(f"{key} = {theirs[key]!r} is no whole number.")
    drawn, learned = theirs["sample_batch_size"] * gpus, theirs["train_batch_size"] * gpus
    return {
        "learner.images_per_step": drawn * theirs["sample_num_batches_per_epoch"],
        "learner.minibatch": learned * theirs["train_gradient_accumulation_steps"],
        "actors.count": gpus, "actors.gpus": 0.4, "learner.gpus": 0.5,
    }


def _chosen(theirs: Mapping[str, Any]) -> Table:
    return {
        "policy.dtype": DTYPES.get(str(theirs["mixed_precision"]), theirs["mixed_precision"]),
        "policy.train": "lora" if theirs.get("use_lora", True) else "full",
        "advantage.over": "prompt" if theirs[TRACKING] else "batch",
        "wandb.mode": "online" if theirs.get("log_with") == "wandb" else "off",
    }


def _prompts(theirs: Mapping[str, Any], notes: list[str]) -> Table:
    kind, given = theirs["prompt_fn"], theirs.get("prompt_fn_kwargs")
    options = given if isinstance(given, dict) else {}
    if kind == "from_file":
        return {"prompts.kind": kind, "prompts.path": options.get("path", "")}
    if kind in ("imagenet_animals", "simple_animals", "nouns_activities", "counting"):
        lists = [str(value) for value in options.values() if str(value) not in ("simple_animals.txt", "activities.txt")]
        notes += [f"prompt_fn_kwargs: write the lines of {value} into [prompts]" for value in lists if ".txt" in value]
        return {"prompts.kind": kind} | {f"prompts.{key}": options[key] for key in ("low", "high") if key in options}
    notes.append(f"the prompt function ({kind}) is code: write its prompts, a line each, into prompts.txt")
    return {"prompts.kind": "from_file", "prompts.path": "prompts.txt"}


def _reward(theirs: Mapping[str, Any], notes: list[str]) -> Table:
    kind = REWARDS.get(str(theirs["reward_fn"]), "function")
    if kind != "function":
        return {"rewards.reward.kind": kind, "rewards.reward.gpus": 0.0 if "compress" in kind else 0.1}
    notes.append(f"the reward function ({theirs['reward_fn']}): put it into reward.py as reward(images, prompts, "
                 "metadata); images are uint8 (B, height, width, 3), not floats (B, 3, height, width)")
    return {"rewards.reward.kind": kind, "rewards.reward.path": "reward.py", "rewards.reward.gpus": 0.1}


def _lost(key: str, value: Any) -> bool:
    return key not in READ and value not in (None, {}) and OTHERWISE.get(key, (None,))[0] != value


def _advice(key: str) -> str:
    return OTHERWISE[key][1] if key in OTHERWISE else "has no counterpart and was left out"


def _put(table: Table, key: str, value: Any) -> None:
    *tables, last = key.split(".")
    for name in tables:
        table = table.setdefault(name, {})
    table[last] = value


def _rendered(config: str, table: Table, notes: list[str]) -> str:
    import tomlkit

    head = [f"Converted from {config}. Where workers go is a proposal: `ddpo plan` says what it needs.", *notes]
    return "".join(f"# {' '.join(line.split())}\n" for line in head) + tomlkit.dumps(table)
