"""Half precision: gradients that do not underflow, a scale that bears overflow, LoRA's copies, what rounding cuts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from updating import ADVANTAGES, ALL, drawn, made

from ddpo.base import find
from ddpo.config import Run
from ddpo.denoiser import Denoiser
from ddpo.errors import ConfigError, DdpoError
from deploy.noise import rounding_note
from learner.learner import Learner
from learner.scaling import MARGIN, PATIENCE, LossScale

PAIRS, DIMENSIONS = 3200, 16_384  # of the paper's minibatch on Stable Diffusion


def gradients(learner: Learner, trajectories, dtype: str) -> torch.Tensor:
    """What the optimizer is given for one minibatch whose loss is divided as at Stable Diffusion's size."""
    found: list[torch.Tensor] = []
    weights, scale = learner.denoiser.trainable.values(), LossScale(dtype)
    learner.scale.of = lambda *_: scale.of(DIMENSIONS, PAIRS)
    learner.optimizer.step = lambda: found.append(torch.cat([w.grad.flatten().double() for w in weights]))
    learner.run = dataclasses.replace(learner.run, learner=dataclasses.replace(learner.run.learner, max_grad_norm=1e9))
    learner.update(trajectories, ADVANTAGES / (PAIRS * DIMENSIONS / (40 * 256)), ALL)
    return found[0]


@pytest.fixture
def small_losses(make_run) -> dict[str, torch.Tensor]:
    """The gradient by precision, from the same trajectories; B is not 0, so that A has a gradient too."""
    found, state, trajectories = {}, None, None
    for dtype in ("float32", "float16", "bfloat16"):
        run = make_run("learner.minibatch=8", f"policy.dtype={dtype}", "policy.guidance=1", "learner.window=[0, -2]",
                       "learner.clip=1")  # wide: here it is the gradient that counts, not what rounding cuts
        learner = Learner(run, find(run.policy.base))
        if state is None:
            state = learner.denoiser.weights()
            draws = np.random.default_rng(0)
            state = {name: array + ("lora_B" in name) * draws.normal(0, 0.02, array.shape).astype(np.float32)
                     for name, array in state.items()}
        learner.denoiser.load_weights(state)
        learner._publish()
        trajectories = trajectories or drawn(run, learner)
        learner.known.append((0, trajectories[0].digest))
        found[dtype] = gradients(learner, trajectories, dtype)
    return found


@pytest.mark.parametrize(("dtype", "least"), [("float16", 0.99), ("bfloat16", 0.95)])
def test_a_gradient_of_stable_diffusions_size_is_that_of_fp32(small_losses, dtype, least):
    exact, half = small_losses["float32"], small_losses[dtype]
    assert float(half @ exact / (half.norm() * exact.norm())) > least
    assert float(half.norm() / exact.norm()) == pytest.approx(1, abs=0.1)
    assert float((half == 0).double().mean()) < 0.05


def test_without_its_scale_a_float16_gradient_of_that_size_is_an_error_and_not_silence(make_run, monkeypatch):
    monkeypatch.setattr(LossScale, "of", lambda *_: 1.0)
    _, learner, trajectories = made(make_run, "learner.minibatch=8", "policy.dtype=float16")
    before = learner.denoiser.weights()
    with pytest.raises(DdpoError, match=r'gradient of step 1 is exactly 0 .* policy.dtype = "float16" rounds it'):
        learner.update(trajectories, ADVANTAGES * 1e-7, ALL)
    assert all(np.array_equal(before[name], array) for name, array in learner.denoiser.weights().items())


def test_pairs_that_the_clip_cuts_may_leave_a_gradient_of_zero(make_run):
    _, learner, trajectories = made(make_run, "lag=1", "learner.minibatch=8", "learner.clip=1e-6", "learner.lr=1e-2")
    learner.update(trajectories, ADVANTAGES, ALL)
    moved = [dataclasses.replace(t, log_probs_BT=t.log_probs_BT - 1) for t in trajectories]  # all ratios are e
    report = learner.update(moved, np.ones(8), ALL)
    assert report.grad_norm == 0 and report.clip_fraction == 1


def test_images_without_an_advantage_have_no_gradient_and_that_is_right(make_run):
    _, learner, trajectories = made(make_run, "learner.minibatch=8")
    assert learner.update(trajectories, np.zeros(8), ALL).grad_norm == 0


def test_a_scale_that_overflows_is_halved_until_it_does_not_and_nothing_else_changes(make_run, monkeypatch):
    _, plain, trajectories = made(make_run, "learner.minibatch=8", "policy.dtype=float16")
    _, learner, _ = made(make_run, "learner.minibatch=8", "policy.dtype=float16")
    expected = plain.update(trajectories, ADVANTAGES, ALL)
    monkeypatch.setattr("learner.scaling.MARGIN", -30)
    learner.scale = LossScale("float16")  # 2^30 times as much as fits
    report = learner.update(trajectories, ADVANTAGES, ALL)
    assert learner.scale.margin > -30
    assert report.grad_norm == pytest.approx(expected.grad_norm, rel=0.05)  # float16 rounds otherwise at another scale
    assert report.pairs == expected.pairs == 40  # those of tries that overflowed are not counted


def test_a_loss_that_is_not_finite_is_no_overflow(make_run):
    _, learner, trajectories = made(make_run, "learner.minibatch=8", "policy.dtype=float16")
    states = trajectories[0].states_NCHW.copy()
    states[3] = np.inf
    broken = [dataclasses.replace(trajectories[0], states_NCHW=states), *trajectories[1:]]
    with pytest.raises(DdpoError, match="the gradient of step 1 is nan, its losses reach from nan to nan"):
        learner.update(broken, ADVANTAGES, ALL)
    assert learner.scale.margin == MARGIN


def test_the_scale_is_of_the_losss_own_size_and_recovers():
    scale = LossScale("float16")
    assert scale.of(16_384, 3200) == 2.0**17 and scale.of(4, 1) == 1.0
    assert LossScale("bfloat16").of(16_384, 3200) == LossScale("float32").of(16_384, 3200) == 1.0
    scale.overflowed()
    scale.overflowed()
    assert scale.of(16_384, 3200) == 2.0**15
    for _ in range(PATIENCE):
        scale.went_well()
    assert scale.of(16_384, 3200) == 2.0**16


def test_the_scale_is_in_the_checkpoint_of_a_float16_run_alone(make_run):
    _, learner, trajectories = made(make_run, "learner.minibatch=8", "policy.dtype=float16")
    learner.scale.overflowed()
    learner.update(trajectories, ADVANTAGES, ALL)
    _, resumed, _ = made(make_run, "learner.minibatch=8", "policy.dtype=float16")
    resumed.restore(1, learner.state(), list(learner.known))
    assert (resumed.scale.margin, resumed.scale.clean) == (MARGIN + 1, 1)
    _, plain, _ = made(make_run, "learner.minibatch=8")
    assert not any(key.startswith("loss_scale") for key in plain.state())


class Kernels(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def forward(denoiser: Denoiser) -> list[str]:
    with torch.no_grad(), Kernels() as kernels:
        denoiser.unet(torch.zeros(2, 4, 8, 8, dtype=denoiser.unet.dtype), 1,
                      torch.zeros(2, 24, 16, dtype=denoiser.unet.dtype))
    return kernels.names


def test_lora_under_a_half_base_computes_in_half_and_in_three_kernels_a_layer(make_run):
    run = make_run("policy.dtype=bfloat16")
    denoiser = Denoiser(find(run.policy.base), run.policy, 0)
    with_lora = forward(denoiser)
    with denoiser.as_base():
        without = forward(denoiser)
    layers = len(denoiser.trainable) // 2
    casts = [sum(name.startswith("_to_copy") for name in names) for names in (with_lora, without)]
    views = ("t.default", "view.default", "_unsafe_view.default", "permute.default", "reshape.default")
    extra = [name for name in with_lora if name not in views]
    assert casts[0] == casts[1]
    assert len(extra) - len([name for name in without if name not in views]) == 2 * layers  # A x, and the sum with B
    assert {copy.dtype for copy in denoiser.learning.copies.values()} == {torch.bfloat16}
    assert {master.dtype for master in denoiser.trainable.values()} == {torch.float32}


def test_the_network_computes_with_what_was_loaded_and_what_was_learned(make_run):
    _, learner, trajectories = made(make_run, "learner.minibatch=8", "policy.dtype=bfloat16")
    learner.update(trajectories, ADVANTAGES, ALL)
    for name, master in learner.denoiser.trainable.items():
        assert torch.equal(learner.denoiser.learning.copies[name], master.to(torch.bfloat16)), name
    _, other, _ = made(make_run, "policy.dtype=bfloat16")
    other.denoiser.load(learner.policy())
    assert all(torch.equal(copy, other.denoiser.learning.copies[name])
               for name, copy in learner.denoiser.learning.copies.items())


def test_log_probs_that_are_recomputed_make_the_ratio_one_whatever_the_sampler_rounded(make_run):
    words = "learner.minibatch=8", "learner.micro_batch=3", "learner.clip=1e-4"
    _, plain, trajectories = made(make_run, *words)
    _, learner, _ = made(make_run, *words, "learner.old_log_probs=recompute")
    coarse = [dataclasses.replace(t, log_probs_BT=t.log_probs_BT + np.float32(3e-4)) for t in trajectories]
    cut, free = plain.update(coarse, ADVANTAGES, ALL), learner.update(coarse, ADVANTAGES, ALL)
    assert cut.clip_fraction == cut.first_clip_fraction == 1
    assert free.clip_fraction == 0 and free.ratio_min == free.ratio_max == 1
    assert free.first_clip_fraction == 1  # what it would have been: the noise is told all the same
    assert np.mean(list(free.log_prob_delta_by_timestep.values())) == pytest.approx(3e-4, rel=0.1)


@pytest.mark.parametrize(("words", "reason"), [
    (("lag=1",), "at lag = 1 images are drawn by older ones"),
    (("learner.algorithm=rwr",), "without effect: rwr has no ratio"),
])
def test_old_log_probs_are_recomputed_only_where_that_is_possible(make_run, words, reason):
    with pytest.raises(ConfigError, match=reason):
        make_run("learner.old_log_probs=recompute", *words)


def metrics(**changes) -> dict:
    return {"lag": 0, "first_clip_fraction": 0.0, "log_prob_delta_by_timestep": {"801": 1e-6, "1": 1e-6}} | changes


def test_rounding_is_told_where_it_is_a_part_of_the_clip_range(make_run):
    run: Run = make_run("learner.clip=1e-4", "policy.dtype=bfloat16")
    assert rounding_note(run, metrics()) == ""
    small = rounding_note(run, metrics(log_prob_delta_by_timestep={"801": 3e-5, "1": 3e-5}))
    assert "moves log-probs by 3e-05" in small and "Cures" not in small
    jump = metrics(first_clip_fraction=0.2, log_prob_delta_by_timestep={"801": 1e-5, "601": 1e-5, "401": 1e-5,
                                                                     "201": 1e-5, "101": 1e-5, "1": 4e-3})
    note = rounding_note(run, jump)
    assert "20.0% of the pairs" in note and "teach nothing" in note and "timestep 1 " in note
    assert 'policy.dtype = "float16"' in note and "learner.window = [0, -2]" in note and "recompute" in note
    assert rounding_note(run, jump | {"lag": 2}) == ""
    assert "None is cut" in rounding_note(make_run("learner.old_log_probs=recompute"), jump)
