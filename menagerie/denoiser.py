"""The denoiser: a UNet and the text encoder it listens to, trained together on latents.

Consumes: the scaled latents of a pool of pictures and the token ids of their prompts.
Produces: `UNet2DConditionModel` and `CLIPTextModel` with the averaged weights of the run.

Shapes: B images, C latent channels, H height, W width, L tokens, N the pool.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# diffusers and transformers annotate less than they accept and return.

import copy
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from menagerie.loop import descend, loop, place, rate, set_rate
from menagerie.tokenizer import LENGTH

WIDTHS = (48, 128, 128)
TEXT_WIDTH = 128
BATCH = 32
RATE = 1e-3
GAMMA = 5.0  # min-SNR weighting, https://arxiv.org/abs/2303.09556, eq. 8
DROPOUT = 0.1  # share of empty prompts, for classifier-free guidance
AVERAGING = 0.999


class Denoiser(nn.Module):
    """UNet and text encoder as one module, so that one optimizer and one average hold both."""

    def __init__(self, latent: int, size: int, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = unet(latent, size)
        self.text = text(tokenizer)

    def forward(self, noisy_BCHW: torch.Tensor, times_B: torch.Tensor, ids_BL: torch.Tensor) -> torch.Tensor:
        """Predict the noise in noised latents under their prompts."""
        return self.unet(noisy_BCHW, times_B, self.text(ids_BL).last_hidden_state).sample


def unet(latent: int, size: int) -> UNet2DConditionModel:
    """Make the UNet: text is attended to at half and quarter resolution, the finest level only draws."""
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=latent,
        out_channels=latent,
        block_out_channels=WIDTHS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def text(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Make the text encoder: two layers, four heads."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def scheduler() -> DDIMScheduler:
    """Make Stable Diffusion 1.x's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        set_alpha_to_one=False,
        steps_offset=1,
        clip_sample=False,
        prediction_type="epsilon",
    )


def tokens(tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
    """Tokenize prompts as the pipeline does; (N, L)."""
    return tokenizer(prompts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt").input_ids


def train(
    latents_NCHW: torch.Tensor, prompts: list[str], tokenizer: CLIPTokenizer, steps: int, device: str, checkpoint: Path
) -> Denoiser:
    """Fit noise prediction on the pool; return the averaged denoiser."""
    torch.manual_seed(0)
    model = Denoiser(latents_NCHW.shape[1], latents_NCHW.shape[2], tokenizer).to(device)
    average = copy.deepcopy(model).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.01)
    ids_NL, empty_1L = tokens(tokenizer, prompts), tokens(tokenizer, [""])
    alphas_T = scheduler().alphas_cumprod.to(device)
    count = BATCH // place()[1]
    for step in loop(checkpoint, steps, {"model": model, "average": average, "optimizer": optimizer}):
        set_rate(optimizer, rate(step, steps, RATE))
        rows = torch.randint(len(ids_NL), (count,))
        ids_BL = torch.where(torch.rand(count, 1) < DROPOUT, empty_1L, ids_NL[rows]).to(device)
        value = loss(model, latents_NCHW[rows].to(device).float(), ids_BL, alphas_T)
        descend(model, optimizer, value)
        follow(average, model, min(AVERAGING, (step + 1) / (step + 10)))
        if step % 100 == 0:
            print(f"denoiser {step}/{steps} loss {value.item():.4f}", flush=True)
    return average


def loss(model: nn.Module, latents_BCHW: torch.Tensor, ids_BL: torch.Tensor, alphas_T: torch.Tensor) -> torch.Tensor:
    """Squared error of the noise, weighted min(SNR, gamma) / SNR; times stratified over the batch.

    The plain attention kernel is asked for because the fused one's backward pass is slower on a CPU at 64 tokens.
    """
    count, device = len(latents_BCHW), latents_BCHW.device
    strata_B = (torch.arange(count, device=device) + torch.rand(count, device=device)) / count
    times_B = (strata_B * len(alphas_T)).long()
    alphas_B = alphas_T[times_B]
    noise_BCHW = torch.randn_like(latents_BCHW)
    signal, spread = (part.sqrt()[:, None, None, None] for part in (alphas_B, 1 - alphas_B))
    noisy_BCHW = signal * latents_BCHW + spread * noise_BCHW
    with torch.autocast(device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        predicted_BCHW = model(noisy_BCHW, times_B, ids_BL)
    ratio_B = alphas_B / (1 - alphas_B)
    errors_B = (predicted_BCHW.float() - noise_BCHW).square().mean((1, 2, 3))
    return (errors_B * ratio_B.clamp(max=GAMMA) / ratio_B).mean()


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, keep: float) -> None:
    """Move the averaged weights towards the model's: keep a share, take the rest."""
    for kept, taken in zip(average.parameters(), model.parameters(), strict=True):
        kept.lerp_(taken, 1 - keep)
