"""The UNet as a policy: frozen base, trainable part, guidance, schedule. The same code samples and learns.

Consumes latents, timesteps and conditions; produces `Gaussian`s, and its trainable weights by name.
Shape letters: B rows, C H W latent, P width of the pooled text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpo.base import BaseModel
from ddpo.condition import Condition
from ddpo.config import PolicyConfig
from ddpo.device import on_gpu, place
from ddpo.errors import BaseModelError, DeliveryError
from ddpo.graphs import Graphs
from ddpo.mdp import Gaussian, Schedule, denoise, guide, noised, schedule, training_abar
from ddpo.pretrained import whole
from ddpo.trainable import Trainable
from ddpo.types import Policy
from ddpo.weights import digest, unpack

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Denoiser:
    """p_theta(x_{t-1} | x_t, c) with theta the LoRA matrices or the whole UNet, both in fp32 (ddpo.trainable).

    unet: one to take instead of loading the base model's, such as one without data (deploy.planning.memory)
    graphs: on a GPU, launch LoRA's network by CUDA graphs (ddpo.graphs); of the backward pass too only where its
            weights are copies in half precision, whose gradients are taken after every pass

    Raises BaseModelError where the UNet cannot be loaded, InputError where LoRA's targets match nothing, DeviceError as
    ddpo.device.place does.
    """

    def __init__(
        self, base: BaseModel, config: PolicyConfig, seed: int, unet: Any = None, graphs: bool = False
    ) -> None:
        self.config = config
        self.device = place(config.device)
        facts = _scheduler_config(base)
        self.schedule: Schedule = schedule(facts, config.steps, config.eta).to(self.device)
        self.abar_N = training_abar(facts).to(self.device)
        self.unet = (unet or _load_unet(base, config)).to(self.device)
        if on_gpu(self.device):  # half convolutions of channels that come first are transposed at every call
            self.unet.to(memory_format=torch.channels_last)
        self.size_6 = torch.tensor(_size_conditioning(base.image_size), device=self.device)
        self.learning = Trainable(self.unet, config, seed)
        self.is_base = False
        self.graphs: Graphs | None = None
        if graphs and self.device.type == "cuda" and config.train == "lora":
            self.graphs = Graphs(self._network, list(self.learning.copies.values()))

    @property
    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The fp32 weights that learn, by their names in the UNet."""
        return self.learning.masters

    def step(self, x_BCHW: Tensor, index_B: Tensor, c: Condition, null: Condition) -> Gaussian:
        """The policy at rows of any timesteps; index_B counts from the noisiest step."""
        output = self.output(x_BCHW, self.schedule.timesteps_T[index_B], c, null)
        return denoise(self.schedule, output, x_BCHW, index_B)

    def output(self, x_BCHW: Tensor, timestep_B: Tensor, c: Condition, null: Condition) -> Tensor:
        """What the UNet says under guidance, at any training timesteps."""
        if self.config.guidance == 1.0:
            return self._predict(x_BCHW, timestep_B, c)
        pair_BCHW = self._predict(x_BCHW.repeat(2, 1, 1, 1), timestep_B.repeat(2), null.then(c))
        without_BCHW, with_BCHW = pair_BCHW.float().chunk(2)
        return guide(without_BCHW, with_BCHW, self.config.guidance)

    def denoising_loss(
        self, x0_BCHW: Tensor, timestep_B: Tensor, noise_BCHW: Tensor, c: Condition, null: Condition
    ) -> Tensor:
        """|target - output|^2 at x_t, mean over the latent's dimensions, (B,) (Ho et al. 2020, equation 14)."""
        x_BCHW, target = noised(self.abar_N[timestep_B], x0_BCHW, noise_BCHW, self.schedule.prediction)
        output = self.output(x_BCHW, timestep_B, c, null)
        return (output.float() - target).square().mean(dim=(1, 2, 3))

    @torch.no_grad()
    def base_step(self, x_BCHW: Tensor, index_B: Tensor, c: Condition, null: Condition) -> Gaussian:
        """p_base at the same rows: LoRA is switched off for it, no second model is needed."""
        with self.as_base():
            return self.step(x_BCHW, index_B, c, null)

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """The base model for the block."""
        self.unet.disable_adapters()
        self.is_base = True
        try:
            yield
        finally:
            self.unet.enable_adapters()
            self.is_base = False

    def _predict(self, x_BCHW: Tensor, timestep_B: Tensor, c: Condition) -> Tensor:
        dtype = self.unet.dtype
        given = (x_BCHW.to(dtype), timestep_B, c.text_BLD.to(dtype), *self._added(c.pooled_BP.to(dtype)))
        if self.graphs:
            return self.graphs(*given, variant=self.is_base)
        with self._autocast():
            return self._network(*given)

    def _network(self, x_BCHW: Tensor, timestep_B: Tensor, text_BLD: Tensor, *added: Tensor) -> Tensor:
        named = dict(zip(("text_embeds", "time_ids"), added, strict=False))
        return self.unet(x_BCHW, timestep_B, text_BLD, added_cond_kwargs=named, return_dict=False)[0]

    def _added(self, pooled_BP: Tensor) -> tuple[Tensor, ...]:
        """What SDXL's UNet is told besides the tokens: the text as a whole, the image's size (Podell et al. 2023)."""
        if self.unet.config.addition_embed_type != "text_time":
            return ()
        return pooled_BP, self.size_6.expand(len(pooled_BP), -1)

    def _autocast(self) -> AbstractContextManager[Any]:
        """Fully trained weights are fp32 and cast for each operation; LoRA's base is stored in its dtype."""
        if self.config.train == "full" and self.config.dtype != "float32":
            return torch.autocast(self.device.type, DTYPES[self.config.dtype])
        return nullcontext()

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """A copy of what is in the module now."""
        return {name: weight.detach().cpu().numpy().copy() for name, weight in self.trainable.items()}

    def load(self, policy: Policy) -> str:
        """Put a policy's weights into the module and return the digest of what the module then holds."""
        self.load_weights(unpack(policy))
        return digest(self.weights())

    def load_weights(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Replace all trainable weights; raises DeliveryError unless names and shapes match exactly."""
        shapes = {name: tuple(weight.shape) for name, weight in self.trainable.items()}
        if shapes != {name: array.shape for name, array in weights.items()}:
            differing = sorted(shapes.keys() ^ weights.keys())[:3] or "shapes"
            raise DeliveryError(f"these weights are not of this model (first difference: {differing}).")
        with torch.no_grad():
            for name, array in weights.items():
                self.trainable[name].copy_(torch.tensor(array))
        self.learning.refresh()


def _scheduler_config(base: BaseModel) -> dict[str, Any]:
    from diffusers import DDIMScheduler

    loaded: Any = DDIMScheduler.load_config(str(base.folder), subfolder="scheduler")
    return dict(loaded)


def _size_conditioning(side: int) -> list[float]:
    """Original height and width, crop's top and left, target height and width: a whole picture of the model's size."""
    return [float(number) for number in (side, side, 0, 0, side, side)]


def _load_unet(base: BaseModel, config: PolicyConfig) -> Any:
    from diffusers import UNet2DConditionModel

    dtype = torch.float32 if config.train == "full" else DTYPES[config.dtype]
    try:
        return whole(UNet2DConditionModel, str(base.folder), subfolder="unet", torch_dtype=dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise BaseModelError(f"policy.base: the UNet of {base.name} cannot be loaded: {error}") from error
