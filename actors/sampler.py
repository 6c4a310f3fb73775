"""The Sampler: draws images and keeps the steps of how they came to be that the learner will ask for.

Consumes `Prompts` and a `Policy`, produces `Images`, a `Trajectory` and a `Receipt`; waits for nothing. A plain class;
the pools make it a Ray actor or call it in this process.

Shape letters: B images, T denoising steps, S = T + 1 states, N of all images' states those that are held, C H W latent,
Y X pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.text import TextEncoder
from ddpo.backends import set_backends
from ddpo.base import BaseModel
from ddpo.condition import Condition
from ddpo.config import Run
from ddpo.denoiser import DTYPES, Denoiser
from ddpo.device import hardware, on_gpu
from ddpo.errors import BaseModelError
from ddpo.graphs import Graphs
from ddpo.pictures import fingerprints
from ddpo.pretrained import whole
from ddpo.subset import held, trainable, trained
from ddpo.threads import threads
from ddpo.types import Images, Policy, Prompts, Receipt, Trajectory

FEWER = (  # what to do where a GPU's memory is too small for a chunk
    "Draw fewer images at once: a smaller actors.batch, which is part of the run's numbers, so set it before the run. "
    "Or leave the GPU to fewer processes; `ddpo plan` estimates what each takes."
)


class Sampler:
    """p_old(x_{t-1} | x_t, c), drawn T times from x_T to x_0, then decoded.

    An image is a function of (weights, prompt, seed, chunk's size and precision), whichever sampler draws it.
    """

    def __init__(self, run: Run, base: BaseModel) -> None:
        self.run = run
        self.text = TextEncoder(base, run.policy)
        self.denoiser = Denoiser(base, run.policy, run.seed, graphs=run.gpu.graphs)
        set_backends(run.gpu)
        self.vae = _load_vae(base, run.policy.dtype).to(self.denoiser.device)
        if on_gpu(self.denoiser.device):
            self.vae.to(memory_format=torch.channels_last)
        self.decoder: Callable[[Tensor], Tensor] = self._pixels
        if run.gpu.graphs and self.denoiser.device.type == "cuda":
            self.decoder = Graphs(self._pixels)
        self.latent_CHW = base.latent_CHW
        self.loaded: tuple[str, str] | None = None

    def sample(self, prompts: Prompts, policy: Policy) -> tuple[Images, Trajectory, Receipt]:
        """Draw one chunk with the policy given; the policy is loaded only if it is not the one already here."""
        start = time.perf_counter()
        with threads(self.run.actors.threads), torch.no_grad():
            digest = self._load(policy)
            c, null = self.text(prompts.text), self.text.null().expand(len(prompts.ids))
            states_BSCHW, log_probs_BT, kl_B = self._chain(prompts, c, null)
            pixels, decoded_B = self._decode(states_BSCHW[:, -1])
        trained_BT = self._trained(prompts)
        held_BS = held(self.run, trained_BT)
        trajectory = Trajectory(
            prompts.ids, policy.version, digest, self.denoiser.schedule.timesteps_T.cpu().numpy(),
            held_BS, states_BSCHW[torch.from_numpy(held_BS)].cpu().numpy(),
            np.where(trained_BT, log_probs_BT.cpu().numpy(), np.float32(np.nan)), c.text_BLD.cpu().numpy(),
            null.text_BLD[0].cpu().numpy(), c.pooled_BP.cpu().numpy(), null.pooled_BP[0].cpu().numpy(),
        )
        # An image without a number for every pixel, state and log-prob is masked; rewards do not see it.
        denoised_B = torch.isfinite(states_BSCHW).flatten(1).all(1).cpu().numpy()
        denoised_B &= (np.isfinite(trajectory.log_probs_BT) | ~trained_BT).all(1)
        if self._compared(prompts):
            denoised_B &= np.isfinite(kl_B)
        failures = _failures(prompts.ids, denoised_B, decoded_B)
        images = _drawn(prompts, pixels, failures)
        marks = tuple(
            "" if image in failures else mark
            for image, mark in zip(prompts.ids, fingerprints(pixels), strict=True)
        )
        seconds = time.perf_counter() - start
        machine = hardware(self.run.policy.device)
        return images, trajectory, Receipt(prompts.ids, policy.version, digest, seconds, kl_B, marks, machine, failures)

    def _load(self, policy: Policy) -> str:
        """Load a policy; the digest returned is of the weights in the module, not of the message."""
        if self.loaded is None or self.loaded[0] != policy.digest:
            self.loaded = (policy.digest, self.denoiser.load(policy))
        return self.loaded[1]

    def _chain(self, prompts: Prompts, c: Condition, null: Condition) -> tuple[Tensor, Tensor, NDArray[np.float64]]:
        steps, compared = self.run.policy.steps, self._compared(prompts)
        noise_BSCHW = _noise(prompts.seeds, steps + 1, self.latent_CHW).to(self.denoiser.device)
        states, log_probs, kls = [noise_BSCHW[:, 0]], [], []
        for i in range(steps):
            index_B = torch.full((len(prompts.ids),), i, device=self.denoiser.device)
            given = states[-1], index_B, c, null
            gaussian = self.denoiser.step(*given)
            states.append(gaussian.sample(noise_BSCHW[:, i + 1]))
            log_probs.append(gaussian.log_prob(states[-1]))
            if i in compared:
                kls.append(gaussian.kl(self.denoiser.base_step(*given)))
        kl_BK = torch.stack(kls, 1) if kls else torch.full((len(prompts.ids), 1), torch.nan)
        return torch.stack(states, 1), torch.stack(log_probs, 1), kl_BK.double().mean(1).cpu().numpy()

    def _trained(self, prompts: Prompts) -> NDArray[np.bool_]:
        """Which steps of the chunk's images the learner will train, (B, T); none of the grids' (step -1)."""
        if prompts.step < 0:
            return np.zeros((len(prompts.ids), self.run.policy.steps), bool)
        place_B = np.array(prompts.ids) % self.run.learner.images_per_step
        return trained(self.run, prompts.step, trainable(self.run, self.denoiser.schedule.stochastic_T))[place_B]

    def _compared(self, prompts: Prompts) -> list[int]:
        """Steps at which the base model is asked too: all that have noise, where the reward pays for KL, and for the
        grids of fixed prompts (step -1); none otherwise, since it doubles the time."""
        wanted = self.run.advantage.kl > 0 or prompts.step < 0
        return self.denoiser.schedule.stochastic_T if wanted and self.run.policy.train == "lora" else []

    def _decode(self, latents_BCHW: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Pixels, and which images have them: in float16 some autoencoders overflow.

        On a GPU image by image: the decoder of a whole chunk takes more memory than the UNet.
        """
        latents = (latents_BCHW / self.vae.config.scaling_factor).to(self.vae.dtype)
        parts = latents.split(1) if on_gpu(self.denoiser.device) else [latents]
        decoded = torch.cat([self.decoder(part) for part in parts]).float()
        finite_B = torch.isfinite(decoded).flatten(1).all(1)
        pixels = (decoded.nan_to_num() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy(), finite_B.cpu().numpy()

    def _pixels(self, latents_BCHW: Tensor) -> Tensor:
        return self.vae.decode(latents_BCHW, return_dict=False)[0]


def _failures(ids: Sequence[int], denoised_B: NDArray[np.bool_], decoded_B: NDArray[np.bool_]) -> dict[int, str]:
    """Why an image was not drawn, by its id; an image that was has no entry."""
    chain, pixels = "the denoiser gave NaN or infinity", "the decoder gave NaN or infinity"
    return {
        image: pixels if denoised else chain
        for image, denoised, decoded in zip(ids, denoised_B, decoded_B, strict=True) if not (denoised and decoded)
    }


def _drawn(prompts: Prompts, pixels_BYX3: NDArray[np.uint8], failures: Mapping[int, str]) -> Images:
    """The images that there are, for the rewards."""
    rows = [row for row, image in enumerate(prompts.ids) if image not in failures]
    return Images(
        tuple(prompts.ids[row] for row in rows), tuple(prompts.text[row] for row in rows),
        tuple(prompts.metadata[row] for row in rows), pixels_BYX3[rows] if failures else pixels_BYX3,
    )


def _noise(seeds: tuple[int, ...], count: int, shape_CHW: tuple[int, int, int]) -> Tensor:
    """x_T and the T draws of every image, from the image's own seed and always on the CPU; (B, T + 1, C, H, W)."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn((count, *shape_CHW), generator=generator) for generator in generators])


def _load_vae(base: BaseModel, dtype: str) -> Any:
    from diffusers import AutoencoderKL

    precision = DTYPES[base.vae_dtype(dtype)]
    try:
        vae = whole(AutoencoderKL, str(base.folder), subfolder="vae", torch_dtype=precision)
    except (OSError, ValueError, RuntimeError) as error:
        raise BaseModelError(f"policy.base: the autoencoder of {base.name} cannot be loaded: {error}") from error
    return vae.requires_grad_(False).eval()
