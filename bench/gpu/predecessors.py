"""The same work as others do it, in the same call on the same card: a bare diffusers loop and ddpo-pytorch's.

Consumes the random model, produces results; waits for nothing. Both are written here from their published code, since
ddpo-pytorch needs versions of 2023: its order of work, its precision and its shapes, with today's diffusers under it.
"""

from __future__ import annotations

from typing import Any

import torch

from bench.gpu.measure import Bench
from bench.gpu.speed import STEPS
from ddpo.base import BaseModel
from ddpo.denoiser import _scheduler_config
from ddpo.mdp import denoise, guide, schedule


def bare(bench: Bench) -> None:
    """diffusers' own pipeline: DDIM with eta 1, guidance 5, fp16, no LoRA, nothing kept."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from diffusers.utils.logging import disable_progress_bar

    disable_progress_bar()
    dtype = torch.float32 if bench.dry else torch.float16
    pipe: Any = StableDiffusionPipeline.from_pretrained(
        str(bench.model()), torch_dtype=dtype, safety_checker=None, feature_extractor=None
    )
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.to(bench.device).set_progress_bar_config(disable=True)
    steps = 2 if bench.dry else 10
    for batch in (2,) if bench.dry else (8, 16):
        def draw(count: int, batch: int = batch) -> None:
            pipe(["a cat"] * batch, num_inference_steps=count, guidance_scale=5.0, eta=1.0, output_type="np")

        few, many = (bench.seconds(lambda count=count: draw(count), 2) for count in (steps, 2 * steps))
        whole = few + (many - few) * (STEPS - steps) / steps
        bench.say(f"diffusers' pipeline, batch {batch}", batch / whole, "images/s")


def ddpo_pytorch(bench: Bench) -> None:
    """Sampling in batches of 8 and training 4 images a timestep at a time, one backward each, under fp16 autocast with
    fp32 LoRA and a GradScaler, as ddpo-pytorch's compressibility config on one GPU."""
    from peft import LoraConfig

    _, base = bench.run(f"policy.dtype={'float32' if bench.dry else 'float16'}")
    unet, dtype = _unet(bench, base), torch.float32 if bench.dry else torch.float16
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian",
                                target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    weights = [weight for weight in unet.parameters() if weight.requires_grad]
    for weight in weights:
        weight.data = weight.data.float()
    plan = schedule(_scheduler_config(base), STEPS, 1.0).to(bench.device)
    optimizer, steps = torch.optim.AdamW(weights, 3e-4), 2 if bench.dry else 4
    scaler = torch.amp.GradScaler(bench.device.type, enabled=not bench.dry)
    width = unet.config.cross_attention_dim

    def predicted(rows: int, x: Any, index: int, text: Any) -> Any:
        index_B = torch.full((rows,), index, device=bench.device)
        with torch.autocast(bench.device.type, dtype, enabled=not bench.dry):
            out = unet(torch.cat([x] * 2), plan.timesteps_T[index_B].repeat(2), text, return_dict=False)[0]
        without, with_text = out.float().chunk(2)
        return denoise(plan, guide(without, with_text, 5.0), x, index_B)

    def sample() -> None:
        x, text = torch.randn(8, *base.latent_CHW, device=bench.device), torch.randn(16, 77, width, device=bench.device)
        with torch.no_grad():
            for index in range(steps):
                gaussian = predicted(8, x, index, text.to(dtype))
                x = gaussian.sample(torch.randn_like(x))
                gaussian.log_prob(x)

    def train() -> None:
        x, text = torch.randn(4, *base.latent_CHW, device=bench.device), torch.randn(8, 77, width, device=bench.device)
        for index in range(steps):
            log_prob = predicted(4, x, index, text.to(dtype)).log_prob(x)
            ratio = torch.exp(log_prob - log_prob.detach())
            loss = torch.maximum(-ratio, -ratio.clamp(1 - 1e-4, 1 + 1e-4)).mean() / steps
            scaler.scale(loss).backward()
            for logged in (loss, ((log_prob - log_prob.detach()) ** 2).mean()):
                logged.item()  # of every timestep, which waits for the GPU
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    sampled = 8 * steps / STEPS / bench.seconds(sample, 2)
    trained = 4 * steps / STEPS / bench.seconds(train, 2)
    bench.say("ddpo-pytorch's sampling, batch 8, without decoding", sampled, "images/s")
    bench.say("ddpo-pytorch's training, batch 4", trained, "images/s")
    bench.say("ddpo-pytorch, in turn on one GPU", 1 / (1 / sampled + 1 / trained), "images/s")


def _unet(bench: Bench, base: BaseModel) -> Any:
    from diffusers import UNet2DConditionModel

    dtype = torch.float32 if bench.dry else torch.float16
    unet: Any = UNet2DConditionModel.from_pretrained(str(base.folder), subfolder="unet", torch_dtype=dtype)
    return unet.to(bench.device)
