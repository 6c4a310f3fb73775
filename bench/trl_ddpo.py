"""TRL's own DDPOTrainer on a folder model, timed from outside, in the environment of `trl_environment.py`.

Consumes: a diffusers Stable Diffusion folder, a file of prompts (one a line), the fields of `Work` as flags.
Produces: one JSON object on the last line of stdout (`measure` and `facts` say its keys).
Waits for: nothing but its own ranks, where torchrun started several.

TRL is used as it comes, through its public methods. The trainer's `step` and `compute_rewards` are overridden
to read the clock around TRL's own; the pipeline's `get_trainable_layers` to set LoRA's rank, which TRL fixes
at 4, and `set_progress_bar_config` to keep quiet. A forward hook counts the rows that went through the UNet,
which shows that guidance and every timestep took part.
"""
# pyright: reportMissingImports=false

import argparse
import hashlib
import importlib.metadata
import io
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from peft import LoraConfig
from PIL import Image
from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline
from trl_environment import PACKAGES, Work

Report = dict[str, Any]


class Pipeline(DefaultDDPOStableDiffusionPipeline):
    """TRL's pipeline with a LoRA of our rank and no progress bars."""

    def __init__(self, folder: str, rank: int) -> None:
        """Load a diffusers folder; TRL freezes everything in it."""
        super().__init__(folder, use_lora=True)
        self.rank = rank

    def get_trainable_layers(self) -> torch.nn.Module:
        """Add the adapter that TRL adds (same layers, same start, alpha = rank), with our rank."""
        layers = ["to_k", "to_q", "to_v", "to_out.0"]
        self.unet.add_adapter(
            LoraConfig(r=self.rank, lora_alpha=self.rank, init_lora_weights="gaussian", target_modules=layers)
        )
        return self.unet

    def set_progress_bar_config(self, **_: Any) -> None:
        """Keep stderr for what goes wrong."""
        super().set_progress_bar_config(disable=True)


class TimedTrainer(DDPOTrainer):
    """TRL's trainer with a clock around `step` and `compute_rewards`; the records are this rank's own."""

    def __init__(self, *arguments: Any) -> None:
        """Build TRL's trainer, then count rows through its UNet."""
        self.records: list[Report] = []
        self.marks: list[float] = []
        self.rows: Counter[str] = Counter()
        super().__init__(*arguments)
        self.sd_pipeline.unet.register_forward_pre_hook(self._count)

    def step(self, epoch: int, global_step: int) -> int:
        """Run TRL's epoch and record its seconds by phase, rows, updates and rewards."""
        self.rows.clear()
        cpu, self.marks = time.process_time(), [time.perf_counter()]
        updated = super().step(epoch, global_step)
        self.marks.append(time.perf_counter())
        began, sampled, scored, trained = self.marks
        self.records.append(
            {
                "seconds": trained - began,
                "seconds_sampling": sampled - began,
                "seconds_rewards": scored - sampled,
                "seconds_training": trained - scored,
                "cpu_seconds": time.process_time() - cpu,
                "updates": updated - global_step,
                "unet_rows_sampling": self.rows["sampling"],
                "unet_rows_training": self.rows["training"],
                "rewards": self.scores,
            }
        )
        return updated

    def compute_rewards(self, *arguments: Any, **named: Any) -> Iterable[Any]:
        """Score as TRL does, noting when it began and ended."""
        self.marks.append(time.perf_counter())
        rewards, metadata = super().compute_rewards(*arguments, **named)
        self.scores: list[float] = torch.cat(rewards).tolist()
        self.marks.append(time.perf_counter())
        return rewards, metadata

    def _count(self, unet: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """Add the rows of one UNet call to its phase."""
        self.rows["training" if unet.training else "sampling"] += len(inputs[0])


def jpeg_size(images: torch.Tensor, *_: Any) -> tuple[np.ndarray, dict]:
    """Return minus the JPEG size in kB of images in [0, 1]: 1000 bytes, quality 95, as in ddpo-pytorch."""
    pixels = (images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return np.array([-_jpeg_bytes(image) / 1000 for image in pixels], dtype=np.float32), {}


def _jpeg_bytes(pixels: np.ndarray) -> int:
    """Return the length of one image, uint8 (height, width, 3), as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=95)
    return file.tell()


REWARDS = {"jpeg": jpeg_size}


def prompt_source(prompts: Sequence[str], seed: int, rank: int) -> Callable[[], tuple[str, dict]]:
    """Return TRL's prompt function: one prompt drawn at random, in an order of the rank's own."""
    draw = random.Random(f"{seed}/{rank}")
    return lambda: (draw.choice(prompts), {})


def config(work: Work, processes: int) -> DDPOConfig:
    """Return TRL's config: fp32 on CPU, all timesteps, guidance in training too, no checkpoint or tracker."""
    return DDPOConfig(
        seed=work.seed,
        num_epochs=work.epochs,
        save_freq=work.epochs,  # epochs count from 0, so none is a multiple of it
        mixed_precision="no",
        accelerator_kwargs={"cpu": True},
        sample_num_steps=work.steps,
        sample_eta=work.eta,
        sample_guidance_scale=work.guidance,
        sample_batch_size=work.sample_batch,
        sample_num_batches_per_epoch=work.images_per_epoch // (work.sample_batch * processes),
        train_batch_size=work.train_batch,
        train_gradient_accumulation_steps=work.accumulation(processes),
        train_learning_rate=work.lr,
        train_clip_range=work.clip,
        train_cfg=work.guidance > 1,
        train_timestep_fraction=1.0,
        per_prompt_stat_tracking=True,
    )


def together(records: Sequence[Report]) -> Report:
    """Join one epoch's records of all ranks: the slowest rank's seconds, sums of counts, mean reward."""
    rewards = np.concatenate([record["rewards"] for record in records])
    seconds = {key: max(r[key] for r in records) for key in records[0] if key.startswith("seconds")}
    counts = ("cpu_seconds", "unet_rows_sampling", "unet_rows_training")
    sums = {key: sum(r[key] for r in records) for key in counts}
    return {
        **seconds,
        **sums,
        "updates": records[0]["updates"],
        "images": len(rewards),
        "images_per_second": len(rewards) / seconds["seconds"],
        "images_per_cpu_second": len(rewards) / sums["cpu_seconds"],
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std()),
    }


def lora_digest(trainer: DDPOTrainer) -> str:
    """Return the sha256 of this rank's trained tensors."""
    tensors = [p.detach().cpu().numpy().tobytes() for p in trainer.trainable_layers]
    return hashlib.sha256(b"".join(tensors)).hexdigest()


def facts(trainer: DDPOTrainer, pipeline: Pipeline) -> Report:
    """Return what the run was made of: machine, versions, model, schedule."""
    schedule = pipeline.scheduler.config
    names = ("prediction_type", "clip_sample", "set_alpha_to_one", "steps_offset", "timestep_spacing")
    return {
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "processes": trainer.accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
        "dtype": str(pipeline.unet.dtype),
        "pixels": pipeline.unet.config.sample_size * pipeline.sd_pipeline.vae_scale_factor,
        "unet_parameters": sum(p.numel() for p in pipeline.unet.parameters() if not p.requires_grad),
        "lora_parameters": sum(p.numel() for p in trainer.trainable_layers),
        "gradient_accumulation": trainer.config.train_gradient_accumulation_steps,
        "timesteps": pipeline.scheduler.timesteps.tolist(),
        "schedule": {name: schedule[name] for name in names},
    }


def measure(trainer: TimedTrainer) -> Report:
    """Train, and return the epochs' records (the first apart), the rate over the others, whether ranks agree.

    TRL wraps its UNet for data parallelism, but its loss goes through the bare module: with LoRA and several
    processes no gradient is averaged, each rank trains a policy of its own and `ranks_agree` is false. Only
    speed is measured here, and TRL saves an all-reduce by it.
    """
    trainer.train()
    gathered = gather_object([{"records": trainer.records, "digest": lora_digest(trainer)}])
    epochs = [together(records) for records in zip(*(rank["records"] for rank in gathered), strict=True)]
    warm_up, measured = epochs[0], epochs[1:]
    return {
        "warm_up": warm_up,
        "epochs": measured,
        "images_per_second": sum(e["images"] for e in measured) / sum(e["seconds"] for e in measured),
        "images_per_cpu_second": sum(e["images"] for e in measured) / sum(e["cpu_seconds"] for e in measured),
        "ranks_agree": len({rank["digest"] for rank in gathered}) == 1,
        "lora_digest": gathered[0]["digest"],
    }


def arguments() -> argparse.Namespace:
    """Read the command line: the model, the prompts, the threads of a process, and every field of `Work`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--prompts", required=True, type=Path)
    parser.add_argument("--threads", required=True, type=int)
    for field in fields(Work):
        choices = sorted(REWARDS) if field.name == "reward" else None
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, choices=choices)
    return parser.parse_args()


def main() -> None:
    """Load, train, report."""
    given = arguments()
    named = {field.name: getattr(given, field.name) for field in fields(Work)}
    work = Work(**{name: value for name, value in named.items() if value is not None})
    ranks = PartialState(cpu=True)  # TRL's pipeline logs through accelerate, which must have begun by then
    work.check(ranks.num_processes)
    prompts = [line for line in given.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    torch.set_num_threads(given.threads)
    pipeline = Pipeline(str(given.model), work.lora_rank)
    source = prompt_source(prompts, work.seed, ranks.process_index)
    trainer = TimedTrainer(config(work, ranks.num_processes), REWARDS[work.reward], source, pipeline)
    report = {"work": asdict(work)} | measure(trainer) | facts(trainer, pipeline)
    trainer.accelerator.end_training()
    if ranks.is_main_process:
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
