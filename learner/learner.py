"""The Learner: turns trajectories and advantages into a better policy.

Consumes trajectories, advantages and which images count; produces a `Report` and the next `Policy`; waits for its other
ranks, where it has some. A plain class; the group makes it a Ray actor or calls it in this process.

Shape letters: B images of the batch, T denoising steps, S = T + 1 states, N those that are held, C H W latent, P pairs.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpo.backends import set_backends
from ddpo.base import BaseModel
from ddpo.condition import Condition
from ddpo.config import Run
from ddpo.delivery import proven
from ddpo.denoiser import Denoiser
from ddpo.device import fitting, on_gpu
from ddpo.errors import DdpoError, DeliveryError, InputError
from ddpo.objective import Tally
from ddpo.subset import chosen, held, stream, trainable, trained
from ddpo.threads import threads
from ddpo.types import Policy, Report, Trajectory
from ddpo.weights import pack
from learner.losses import Batch, Terms, micro_batches, policy_gradient, regression
from learner.proximal import centred
from learner.ranks import Ranks
from learner.scaling import LossScale

FEWER = (  # what to do where a GPU's memory is too small for a micro-batch
    "Learn from fewer pairs at once: a smaller learner.micro_batch, or learner.gradient_checkpointing = true; both "
    "change the numbers by rounding only. Or leave the GPU to fewer processes; `ddpo plan` estimates what each takes."
)


class Learner:
    """theta, and the gradient ascent on E[A p_theta / p_old].

    Every random choice is keyed by (seed, step, inner epoch), so a resumed learner needs no generator's state. Of
    several ranks each makes the same plan, computes its share of every minibatch's gradient and takes the same steps.
    """

    def __init__(self, run: Run, base: BaseModel, ranks: Ranks | None = None) -> None:
        self.run, self.step, self.ranks = run, 0, ranks or Ranks()
        self.regression = run.learner.algorithm.startswith("rwr")
        self.denoiser = Denoiser(
            base, run.policy, run.seed, graphs=run.gpu.graphs and not run.learner.gradient_checkpointing
        )
        set_backends(run.gpu)
        if run.learner.gradient_checkpointing:
            self.denoiser.unet.enable_gradient_checkpointing()
            self.denoiser.unet.train()
        self.timesteps_T = self.denoiser.schedule.timesteps_T.cpu()
        self.window = trainable(run, self.denoiser.schedule.stochastic_T)
        if not self.window and not self.regression:
            raise InputError(f"learner.window = {run.learner.window} holds only steps with sigma = 0, which have no "
                             "log-prob. Write a window with earlier steps in it.")
        options, weights = run.learner, self.denoiser.trainable.values()
        self.optimizer = torch.optim.AdamW(
            weights, options.lr, (options.beta1, options.beta2), options.epsilon, options.weight_decay,
            fused=on_gpu(self.denoiser.device) or None,
        )
        self.scale = LossScale(run.policy.dtype)
        self.average: dict[str, Tensor] = {}  # of the weights over updates, where learner.ema asks for it
        if options.ema:
            self.average = {name: weight.detach().clone() for name, weight in self.denoiser.trainable.items()}
        self.known: deque[tuple[int, str]] = deque(maxlen=run.lag + 1)
        self._publish()

    def update(
        self, trajectories: Sequence[Trajectory], advantages_B: NDArray[np.float64], kept_B: NDArray[np.bool_]
    ) -> Report:
        """Learn from one batch, whose images come in the order of their ids, and publish the next policy.

        Images that are not kept are left out of every sum, as are those of weight 0 in RWR. Raises DeliveryError for a
        trajectory that was not drawn by a policy published within the last `lag` steps.
        """
        start = time.perf_counter()
        lag = self._proven_lag(trajectories)
        batch = self._batch(trajectories, advantages_B)
        tally, norms, done = Tally(batch.dimensions), [], 0
        self.drawn_BT = np.concatenate([trajectory.log_probs_BT for trajectory in trajectories])
        used_B = kept_B & (advantages_B != 0) if self.regression else kept_B
        plan = [pairs for epoch in range(self.run.learner.inner_epochs) for pairs in self._minibatches(epoch, used_B)]
        with threads(self.run.learner.threads):
            around = centred(self.denoiser, self.run.learner, batch, lag, plan, self.ranks)
            for pairs, centre in zip(plan, around, strict=True):
                norms.append(self._minibatch(centre, pairs, done, tally))
                done += len(pairs)
        self.step += 1
        self._publish()
        return self._report(self._together(tally), norms, lag, time.perf_counter() - start)

    def policy(self) -> Policy:
        """The newest published policy."""
        return self._policy

    def _publish(self) -> None:
        self._policy = pack(self.denoiser.weights(), self.step)
        self.known.append((self.step, self._policy.digest))

    def _together(self, tally: Tally) -> Tally:
        """The figures of all ranks; raises DeliveryError unless all hold the published weights, bit for bit."""
        told = self.ranks.gather({"digest": self._policy.digest, "tally": asdict(tally)})
        digests = [one["digest"] for one in told]
        if len(set(digests)) > 1:
            held = ", ".join(digest[:12] for digest in digests)
            raise DeliveryError(
                f"after step {self.step} the learner's ranks hold different weights ({held}); they are one learner "
                "only while these are equal, bit for bit. Give all ranks the same kind of GPU and the same versions "
                "of torch and diffusers; `--resume` goes on from the last checkpoint."
            )
        whole = Tally(tally.dimensions)
        for one in told:
            whole.merge(Tally(**one["tally"]))
        return whole

    def _proven_lag(self, trajectories: Sequence[Trajectory]) -> int:
        for trajectory in trajectories:
            if (trajectory.version, trajectory.digest) not in self.known:
                known = ", ".join(f"{version} ({digest[:12]})" for version, digest in self.known)
                raise DeliveryError(
                    f"images {trajectory.ids[0]}..{trajectory.ids[-1]} were drawn by weights {trajectory.digest[:12]} "
                    f"as version {trajectory.version}; published within lag {self.run.lag} are: {known}. A sampler "
                    "did not load what it was sent, or the batch is too old; learning from it would be silently wrong."
                )
        return self.step - min(trajectory.version for trajectory in trajectories)

    def _batch(self, trajectories: Sequence[Trajectory], advantages_B: NDArray[np.float64]) -> Batch:
        device = self.denoiser.device
        held_BS, states, log_probs, text, pooled = (
            torch.from_numpy(np.concatenate([getattr(trajectory, name) for trajectory in trajectories]))
            for name in ("held_BS", "states_NCHW", "log_probs_BT", "text_BLD", "pooled_BP")
        )
        self._check_steps(trajectories, held_BS.numpy())
        row_BS = torch.where(held_BS, held_BS.flatten().cumsum(0).view_as(held_BS) - 1, len(states))
        limit = np.inf if self.regression else self.run.advantage.clip
        clipped = torch.tensor(advantages_B.clip(-limit, limit), dtype=torch.float32).to(device)
        null = (torch.tensor(part)[None] for part in (trajectories[0].null_LD, trajectories[0].null_pooled_P))
        log_probs = log_probs.to(device)
        return Batch(states, row_BS, log_probs, Condition(text, pooled).to(device), Condition(*null).to(device),
                     clipped, log_probs)

    def _check_steps(self, trajectories: Sequence[Trajectory], held_BS: NDArray[np.bool_]) -> None:
        timesteps = self.timesteps_T.numpy()
        if any(not np.array_equal(trajectory.timesteps_T, timesteps) for trajectory in trajectories):
            raise DeliveryError("a trajectory was drawn on other timesteps than the learner's; its log-probs are no "
                                "ratio's denominator. Sampler and learner must read the same scheduler config.")
        missing_BS = held(self.run, trained(self.run, self.step, self.window)) & ~held_BS
        if missing_BS.any():
            raise DeliveryError(
                f"the trajectories of step {self.step + 1} lack {missing_BS.sum()} of the states that it trains. Which "
                "timesteps are trained follows from config, seed and step, so a sampler has drawn for another step, "
                "or has another version of numpy than the learner, whose random numbers are others."
            )

    def _minibatches(self, epoch: int, kept_B: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
        """Pairs (image, step index) of each minibatch, shape (P, 2); all its trained timesteps, image by image.

        DDPO's minibatch shrinks where images are masked; RWR chooses by weight, so there minibatches are filled up.
        """
        size = self.run.learner.minibatch
        steps = self._noised(epoch, kept_B) if self.regression else chosen(self.run, self.step, epoch, self.window)
        order = list(steps)
        for start in range(0, len(order), size):
            images = [image for image in order[start : start + size] if kept_B[image]]
            if images:
                yield np.array([(image, index) for image in images for index in steps[image]])

    def _noised(self, epoch: int, kept_B: NDArray[np.bool_]) -> dict[int, NDArray[np.int64]]:
        """RWR's inner epoch: the kept images in its order, each with one timestep of the training schedule."""
        draws = stream(self.run, self.step, epoch)
        order = draws.permutation(len(kept_B))
        return {image: draws.integers(len(self.denoiser.abar_N), size=1) for image in order[kept_B[order]]}

    def _minibatch(self, batch: Batch, pairs_P2: NDArray[np.int64], done: int, tally: Tally) -> float:
        """One optimizer update, after `done` pairs of the step; the gradient is the mean over the minibatch's pairs.

        Where float16 overflows, the loss's scale is halved and the gradient computed again. Returns its norm before
        clipping; raises DdpoError where it is not finite at any scale, or 0 for no reason.
        """
        weights = list(self.denoiser.trainable.values())
        while True:
            scale = self.scale.of(batch.dimensions, len(pairs_P2))
            seen = self._gradient(batch, pairs_P2, done, scale)
            self.ranks.sum_gradients(weights)
            norm = float(torch.nn.utils.clip_grad_norm_(weights, self.run.learner.max_grad_norm))
            if math.isfinite(norm):
                break
            self._check_overflow(norm, scale, seen)
            self.optimizer.zero_grad(set_to_none=True)
        self._check_zero(norm, seen)
        # Adam's step, on the fp32 weights; then what the network computes with, and the average.
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.denoiser.learning.refresh()
        self._average()
        self.scale.went_well()
        for part_P2, figures_5P in seen:
            self._count(part_P2, figures_5P, tally, first=not done)
        return norm

    def _gradient(
        self, batch: Batch, pairs_P2: NDArray[np.int64], done: int, scale: float
    ) -> list[tuple[Tensor, Tensor]]:
        """This rank's share of a minibatch's gradient, into the weights' `grad`; returns pairs and figures of every
        micro-batch, on the host. Nothing in it waits for the device before all micro-batches have been given to it."""
        seen: list[tuple[Tensor, Tensor]] = []
        self.denoiser.learning.sum = None  # of a try that was broken off
        for before, part_P2 in self.ranks.share(micro_batches(pairs_P2, self.run.learner.micro_batch)):
            terms = self._terms(batch, part_P2, done + before)
            (terms.loss_P.sum() / len(pairs_P2) * scale).backward()
            self.denoiser.learning.take_gradients()
            seen.append((part_P2, terms.figures()))
        self.denoiser.learning.give_gradients(scale)
        if not seen:
            return []
        figures = torch.cat([figures_5P for _, figures_5P in seen], dim=1).cpu()
        parts = figures.split([len(part_P2) for part_P2, _ in seen], dim=1)
        return [(part_P2, figures_5P) for (part_P2, _), figures_5P in zip(seen, parts, strict=True)]

    def _check_overflow(self, norm: float, scale: float, seen: list[tuple[Tensor, Tensor]]) -> None:
        """Lower the loss's scale; raises DdpoError where that is not what the gradient suffers from."""
        losses = torch.cat([figures_5P[0] for _, figures_5P in seen]) if seen else torch.zeros(1)
        if scale > 1.0 and bool(torch.isfinite(losses).all()):
            self.scale.overflowed()
            return
        raise DdpoError(
            f"the gradient of step {self.step + 1} is {norm}, its losses reach from {float(losses.min()):.3g} to "
            f"{float(losses.max()):.3g}; the weights were left as they were. A smaller learner.lr, or policy.dtype = "
            '"bfloat16" or "float32", usually cures it; `--resume` goes on from the last checkpoint.'
        )

    def _check_zero(self, norm: float, seen: list[tuple[Tensor, Tensor]]) -> None:
        """Raise DdpoError where nothing would be learned though some pair has a loss that the clip did not cut."""
        if norm == 0 and any(bool(((figures_5P[0] != 0) & (figures_5P[4] == 0)).any()) for _, figures_5P in seen):
            raise DdpoError(
                f"the gradient of step {self.step + 1} is exactly 0 though there are advantages and ratios within the "
                f"clip range: the run would go on and learn nothing. policy.dtype = \"{self.run.policy.dtype}\" "
                "rounds it away, or policy.lora_targets names modules that the image does not depend on; try "
                'policy.dtype = "float32" for a step.'
            )

    @torch.no_grad()
    def _average(self) -> None:
        """average <- d average + (1 - d) weights, with d = min(ema, (1 + n) / (10 + n)) after n updates, as diffusers'
        EMAModel, so that the first weights are soon forgotten."""
        if not self.average:
            return
        weights: list[Tensor] = [self.denoiser.trainable[name] for name in self.average]
        updates = float(self.optimizer.state[weights[0]]["step"])  # asked of one: on a GPU the host waits for it
        share = 1 - min(self.run.learner.ema, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(list(self.average.values()), weights, share)

    def _terms(self, batch: Batch, pairs_P2: Tensor, place: int) -> Terms:
        if self.regression:
            noise = stream(self.run, self.step, place, 1)
            return regression(self.denoiser, batch, pairs_P2, int(noise.integers(2**63)))
        return policy_gradient(self.denoiser, self.run.learner, batch, pairs_P2)

    def _count(self, pairs_P2: Tensor, figures_5P: Tensor, tally: Tally, first: bool) -> None:
        """Add a micro-batch to the step's figures; of the first minibatch also how far its log-probs are from the
        sampler's, which at lag 0 is rounding alone."""
        loss_P, log_prob_P, old_P, base_kl_P, cut_P = figures_5P
        tally.add(loss_P, log_prob_P, old_P, base_kl_P, cut_P.bool())
        if first and not self.regression:
            timesteps = self.timesteps_T[pairs_P2[:, 1]].tolist()
            drawn_P = torch.from_numpy(self.drawn_BT)[pairs_P2.unbind(1)]
            tally.add_first(timesteps, log_prob_P - drawn_P, self.run.learner.clip)

    def _report(self, tally: Tally, norms: list[float], lag: int, seconds: float) -> Report:
        return Report(
            version=self.step, lag=lag, updates=len(norms), pairs=tally.pairs, loss=tally.loss / tally.pairs,
            approx_kl=tally.kl / tally.pairs, clip_fraction=tally.clipped / tally.pairs, ratio_min=tally.ratio_min,
            ratio_max=tally.ratio_max, mean_abs_log_prob_delta=tally.abs_delta / tally.pairs,
            max_abs_log_prob_delta=tally.max_delta, effective_sample_size=tally.effective_share,
            log_prob_delta_by_timestep=tally.delta_by_timestep(), first_clip_fraction=tally.first_cut_share,
            base_kl=tally.base_kl / tally.pairs,
            grad_norm=sum(norms) / len(norms), seconds=seconds,
        )

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything that learns, as named arrays: weights, their average, Adam's moments and its count of updates, the
        loss's scale."""
        arrays: dict[str, NDArray[Any]] = {f"weights/{name}": w for name, w in self.denoiser.weights().items()}
        arrays |= {f"average/{name}": mean.cpu().numpy().copy() for name, mean in self.average.items()}
        for name, weight in self.denoiser.trainable.items():
            for moment, value in self.optimizer.state.get(weight, {}).items():
                arrays[f"{moment}/{name}"] = value.detach().cpu().numpy().copy()
        return arrays | self.scale.state()

    def restore(self, step: int, arrays: dict[str, NDArray[Any]], known: Sequence[tuple[int, str]]) -> None:
        """Stand where `state` was taken, after `step` steps; `known` are the policies in flight, oldest first."""
        groups: dict[str, dict[str, NDArray[Any]]] = {}
        for key, array in arrays.items():
            kind, _, name = key.partition("/")
            groups.setdefault(kind, {})[name] = array
        self.denoiser.load_weights(groups.pop("weights"))
        averages = groups.pop("average", {})
        self.scale.restore(groups.pop("loss_scale", {}).get("state"))
        self.average = {name: torch.tensor(mean, device=self.denoiser.device) for name, mean in averages.items()}
        self.optimizer.state.clear()
        # A fused Adam reads its counts of updates on the device, the other one in the host's memory.
        counts = self.denoiser.device if on_gpu(self.denoiser.device) else torch.device("cpu")
        for name, weight in self.denoiser.trainable.items():
            moments = {kind: torch.tensor(named[name]) for kind, named in groups.items() if name in named}
            if moments:
                self.optimizer.state[weight] = {
                    kind: value.to(counts if kind == "step" else weight.device) for kind, value in moments.items()
                }
        self.step = step
        self._policy = pack(self.denoiser.weights(), step)
        self.known = deque(known, maxlen=self.run.lag + 1)


class LocalLearner:
    """The Learner in this process, under the main loop's verbs."""

    def __init__(self, run: Run, base: BaseModel) -> None:
        self.learner = Learner(run, base)
        self.policy, self.state, self.restore = self.learner.policy, self.learner.state, self.learner.restore

    @property
    def step(self) -> int:
        """Batches learned from."""
        return self.learner.step

    @property
    def progress(self) -> int:
        """Grows with every micro-batch."""
        return self.learner.ranks.finished

    def update(self, scored: Any, advantages_B: NDArray[np.float64]) -> Report:
        """Learn from a scored batch whose chunks are the objects themselves."""
        trajectories = proven([chunk.trajectory for chunk in scored.chunks], scored.prompts.ids)
        with fitting(f"learn from {self.learner.run.learner.micro_batch} pairs at once", FEWER):
            return self.learner.update(trajectories, advantages_B, scored.kept_B)
