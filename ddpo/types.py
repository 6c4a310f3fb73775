"""What travels on the edges of the system: one frozen dataclass per edge, numpy only.

Shape letters: B images of a chunk or batch, T denoising steps, S = T + 1 states, C H W latent channels, height and
width, L text tokens, D text width, P width of SDXL's pooled text (0 for SD 1 and 2), Y X pixels.

Arrays are numpy, so that Ray hands them over without a copy and the driver needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Metadata = Mapping[str, Any]


@dataclass(frozen=True)
class Prompt:
    """One prompt of a source; metadata is what a reward needs besides the text, such as questions and answers."""

    text: str
    metadata: Metadata


@dataclass(frozen=True)
class Prompts:
    """draw -> samplers: what to draw. `ids` number every image of the run, `seeds` fix each image's noise."""

    step: int
    ids: tuple[int, ...]
    text: tuple[str, ...]
    metadata: tuple[Metadata, ...]
    seeds: tuple[int, ...]

    def chunks(self, size: int) -> list[Prompts]:
        """Cut into consecutive parts of `size` images: the unit of work, fixed by the config alone."""
        cuts = [slice(start, start + size) for start in range(0, len(self.ids), size)]
        return [
            Prompts(self.step, self.ids[cut], self.text[cut], self.metadata[cut], self.seeds[cut]) for cut in cuts
        ]


@dataclass(frozen=True)
class Images:
    """samplers -> rewards: all that a reward may see. `pixels` is uint8 of shape (B, Y, X, 3).

    Images of a chunk that could not be drawn (Receipt.failures) are not among them, so B may be less than the chunk's,
    and 0.
    """

    ids: tuple[int, ...]
    text: tuple[str, ...]
    metadata: tuple[Metadata, ...]
    pixels_BYX3: NDArray[np.uint8]


@dataclass(frozen=True)
class Trajectory:
    """samplers -> learner: the steps of B denoising chains that are trained, and who drew them.

    version, digest: of the weights that were in the module when the chunk was drawn
    timesteps_T:     in sampling order, high noise first
    held_BS:         which states x_T ... x_0 are here, those that training asks for (ddpo.subset); state i is before
                     step i and state i + 1 after it
    states_NCHW:     these, image by image in the chain's order, each once, float32; N is the number that is held
    log_probs_BT:    log p_old(x_{t-1} | x_t, c), mean over the latent's dimensions, float32; NaN where not trained
    text_BLD:        prompt embeddings, float32; null_LD is the empty prompt's, for guidance
    pooled_BP:       embeddings of the whole prompts, float32; null_pooled_P is the empty prompt's
    """

    ids: tuple[int, ...]
    version: int
    digest: str
    timesteps_T: NDArray[np.int64]
    held_BS: NDArray[np.bool_]
    states_NCHW: NDArray[np.float32]
    log_probs_BT: NDArray[np.float32]
    text_BLD: NDArray[np.float32]
    null_LD: NDArray[np.float32]
    pooled_BP: NDArray[np.float32]
    null_pooled_P: NDArray[np.float32]


@dataclass(frozen=True)
class Receipt:
    """samplers -> driver: that a chunk was drawn, by which weights, in how many seconds.

    version, digest: as in Trajectory
    kl_B:            KL(p || p_base) of each image, mean over its steps and latent dimensions; NaN where not measured
    pixels:          sha256 of each image's pixels, proof that one drawn again later is the same; "" of one that failed
    hardware:        what drew it, as ddpo.device.hardware says it: on another kind the last bits may differ
    failures:        images that could not be drawn, with the reason; they are masked
    """

    ids: tuple[int, ...]
    version: int
    digest: str
    seconds: float
    kl_B: NDArray[np.float64]
    pixels: tuple[str, ...]
    hardware: Mapping[str, str] = field(default_factory=dict)
    failures: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Chunk:
    """One chunk's three results; images and trajectory are Ray references on a cluster."""

    images: Any
    trajectory: Any
    receipt: Receipt


@dataclass(frozen=True)
class Rollouts:
    """samplers -> rewards pool: the chunks of one batch, in the order of their prompts.

    chunks: each a Chunk in one process; of a pool an actors.pooled.Drawing, which reads as one once it is drawn
    """

    prompts: Prompts
    chunks: Sequence[Any]


@dataclass(frozen=True)
class Captions:
    """describe -> compare: a text per image in the order of ids, or for all of them the reason why there is none.

    seconds: as in Scores
    """

    ids: tuple[int, ...]
    text: tuple[str, ...]
    metadata: tuple[Metadata, ...]
    captions: tuple[str, ...]
    failures: Mapping[int, str]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Scores:
    """A reward worker -> driver: one value per image, or the reason why there is none (never both).

    seconds: of every stage that worked on it, "score" where the reward is one
    """

    ids: tuple[int, ...]
    values: Mapping[int, float]
    failures: Mapping[int, str]
    info: Mapping[str, Sequence[Any]]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Scored:
    """driver -> learner: one batch with its rewards; only floats and references.

    rewards_B:  weighted sum of the parts, NaN where masked
    parts:      reward name -> (B,) values, NaN where missing
    info:       reward name -> key -> one value per image, in their order, None where missing (captions, ...)
    masked:     image id -> reason; these images are not trained on
    receipts:   who drew each chunk
    chunks:     where the trajectories are, as in Rollouts
    seconds:    "sample", "score" and "score POOL" of every pool of reward workers, summed over workers
    """

    prompts: Prompts
    rewards_B: NDArray[np.float64]
    parts: Mapping[str, NDArray[np.float64]]
    info: Mapping[str, Mapping[str, Sequence[Any]]]
    masked: Mapping[int, str]
    receipts: Sequence[Receipt]
    chunks: Sequence[Any]
    seconds: Mapping[str, float]

    @property
    def kept_B(self) -> NDArray[np.bool_]:
        """Which images have a reward, bool (B,)."""
        return np.array([image not in self.masked for image in self.prompts.ids])

    @property
    def kl_B(self) -> NDArray[np.float64]:
        """KL(p || p_base) of each image, as in Receipt."""
        return np.concatenate([receipt.kl_B for receipt in self.receipts])


@dataclass(frozen=True)
class Policy:
    """learner -> samplers: trainable weights as one msgpack message (see ddpo.weights), with version and digest."""

    version: int
    digest: str
    message: bytes = field(repr=False)


@dataclass(frozen=True)
class Report:
    """learner -> log: what one `update` did.

    loss, approx_kl, clip_fraction: means over all trained (image, timestep) pairs of the step; a pair counts as clipped
                                    where its ratio left 1 +- clip or, with learner.correction = "truncate", C
    ratio_min, ratio_max:           extremes of p / p_old, as roots over the latent's dimensions
    mean_, max_abs_log_prob_delta:  |log p - log p_old|, per latent dimension
    effective_sample_size:          (sum w)^2 / sum w^2 as a share of the pairs, w = p / p_old as probabilities
    log_prob_delta_by_timestep:     mean |log p - log p_old| of the first minibatch, before its update: at lag 0 the
                                    numerical noise floor, at lag k the drift of k updates
    first_clip_fraction:            share of the first minibatch's pairs outside 1 +- clip before its update: at lag 0
                                    what rounding alone cuts; NaN for RWR
    base_kl:                        mean KL to the base model's step, per latent dimension; NaN where learner.kl is 0
    grad_norm:                      mean over updates, before clipping
    """

    version: int
    lag: int
    updates: int
    pairs: int
    loss: float
    approx_kl: float
    clip_fraction: float
    ratio_min: float
    ratio_max: float
    mean_abs_log_prob_delta: float
    max_abs_log_prob_delta: float
    effective_sample_size: float
    log_prob_delta_by_timestep: Mapping[int, float]
    first_clip_fraction: float
    base_kl: float
    grad_norm: float
    seconds: float
