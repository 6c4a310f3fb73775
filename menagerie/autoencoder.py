"""The autoencoder: 64x64 pixels to 16x16 latents of four channels and back.

Consumes: composed pictures.
Produces: a frozen `AutoencoderKL` whose scaling factor gives the latents unit variance.

Shapes: B images, C channels, H height, W width.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# diffusers and transformers annotate less than they accept and return.

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from menagerie.loop import agreed, descend, loop, place, rate, set_rate
from menagerie.scenes import PIXELS

CHANNELS = (24, 48, 80)
LATENT = 4
BATCH = 8
RATE = 2e-3
KL_WEIGHT = 1e-3
POLISH_RATE = 1e-3
POLISH_NOISE = 0.3  # of latents whose deviation is about 1.4
NARROW = -6.0  # the posterior's first log-variance: an autoencoder that starts with wide noise learns grey mud


def build() -> AutoencoderKL:
    """Make an untrained autoencoder with a narrow posterior."""
    model = AutoencoderKL(
        block_out_channels=CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
        layers_per_block=1,
        latent_channels=LATENT,
        norm_num_groups=8,
        sample_size=PIXELS,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    with torch.no_grad():
        model.encoder.conv_out.weight[LATENT:].mul_(0.1)
        model.encoder.conv_out.bias.view(2, LATENT)[1] = NARROW  # pyright: ignore[reportOptionalMemberAccess]
    return model


def train(pictures: np.ndarray, steps: int, device: str, checkpoint: Path) -> AutoencoderKL:
    """Fit the autoencoder to uint8 (N, H, W, C) pictures; return it frozen, with its scaling factor set."""
    torch.manual_seed(0)
    model = build().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    count = BATCH // place()[1]
    for step in loop(checkpoint, steps, {"model": model, "optimizer": optimizer}):
        set_rate(optimizer, rate(step, steps, RATE))
        images_BCHW = as_images(pictures[torch.randint(len(pictures), (count,)).numpy()], device)
        value = loss(model, images_BCHW)
        descend(model, optimizer, value)
        if step % 100 == 0:
            print(f"autoencoder {step}/{steps} loss {value.item():.4f}", flush=True)
    model.requires_grad_(False).eval()
    latents = encode(model, pictures[:1024]).float()
    model.register_to_config(scaling_factor=round(1 / agreed(latents.std().item()), 5))
    return model


def as_images(pixels: np.ndarray, device: str) -> torch.Tensor:
    """Turn uint8 (B, H, W, C) into float (B, C, H, W) in -1..1."""
    images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images.contiguous()


def loss(model: AutoencoderKL, images_BCHW: torch.Tensor) -> torch.Tensor:
    """How far the drawing is from the picture, plus a little KL."""
    with torch.autocast(images_BCHW.device.type, torch.bfloat16):
        posterior = model.encode(images_BCHW).latent_dist
        drawn = model.decode(posterior.sample()).sample
    return distance(drawn.float(), images_BCHW) + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()


def polish(model: AutoencoderKL, pictures: np.ndarray, steps: int, device: str, checkpoint: Path) -> None:
    """Go on with the decoder alone, on latents with noise added: the denoiser's latents are never quite right."""
    model.decoder.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=POLISH_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    count = BATCH // place()[1]
    for step in loop(checkpoint, steps, {"decoder": model.decoder, "optimizer": optimizer}):
        set_rate(optimizer, rate(step, steps, POLISH_RATE))
        images_BCHW = as_images(pictures[torch.randint(len(pictures), (count,)).numpy()], device)
        value = polish_loss(model, images_BCHW)
        descend(model.decoder, optimizer, value)
        if step % 100 == 0:
            print(f"polish {step}/{steps} loss {value.item():.4f}", flush=True)
    model.requires_grad_(False).eval()


def polish_loss(model: AutoencoderKL, images_BCHW: torch.Tensor) -> torch.Tensor:
    """How far the drawing is from the picture, when up to POLISH_NOISE is added to its latents."""
    with torch.autocast(images_BCHW.device.type, torch.bfloat16):
        with torch.no_grad():
            latents = model.encode(images_BCHW).latent_dist.mean
        spread = POLISH_NOISE * torch.rand(len(latents), 1, 1, 1, device=latents.device)
        drawn = model.decode(latents + spread * torch.randn_like(latents)).sample
    return distance(drawn.float(), images_BCHW)


def distance(drawn_BCHW: torch.Tensor, images_BCHW: torch.Tensor) -> torch.Tensor:
    """L1 of the colours plus the L1 of the edges at three scales, for crisp outlines."""
    error_BCHW = drawn_BCHW - images_BCHW
    value = error_BCHW.abs().mean()
    for _ in range(3):
        value = value + 0.5 * (error_BCHW.diff(dim=-1).abs().mean() + error_BCHW.diff(dim=-2).abs().mean())
        error_BCHW = F.avg_pool2d(error_BCHW, 2)
    return value


@torch.no_grad()
def encode(model: AutoencoderKL, pictures: np.ndarray, batch: int = 128) -> torch.Tensor:
    """Encode uint8 (N, H, W, C) pictures to the posteriors' means, fp16 on the CPU, not yet scaled."""
    means = []
    for at in range(0, len(pictures), batch):
        images_BCHW = as_images(pictures[at : at + batch], str(model.device))
        with torch.autocast(model.device.type, torch.bfloat16):
            mean_BCHW = model.encode(images_BCHW).latent_dist.mean
        means.append(mean_BCHW.half().cpu())
    return torch.cat(means)


@torch.no_grad()
def psnr(model: AutoencoderKL, pictures: np.ndarray) -> float:
    """Measure the reconstruction of uint8 (N, H, W, C) pictures: mean decibels."""
    images_BCHW = as_images(pictures, str(model.device))
    drawn = model.decode(model.encode(images_BCHW).latent_dist.mean).sample.clamp(-1, 1)
    return (10 * torch.log10(4 / (drawn - images_BCHW).square().mean((1, 2, 3)))).mean().item()
