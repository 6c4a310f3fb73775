"""The learner on a tiny real model: property 1, gradients, masking, delivery."""

from __future__ import annotations

import dataclasses
import json
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import rounding
import torch
from learning import local_pools
from safetensors.numpy import load_file
from two_ranks import record
from updating import ADVANTAGES, ALL, drawn, made

from actors.prompts import Draw, source
from ddpo.base import find
from ddpo.condition import Condition
from ddpo.errors import CheckpointError, DeliveryError, InputError
from learner import checkpoint, lora
from learner.learner import Learner

pytestmark = pytest.mark.numbers


def test_ratio_is_exactly_one_with_unchanged_weights(make_run):
    _, learner, trajectories = made(make_run, "learner.minibatch=8")
    report = learner.update(trajectories, ADVANTAGES, ALL)
    assert report.max_abs_log_prob_delta == 0.0
    assert report.ratio_min == report.ratio_max == 1.0
    assert report.clip_fraction == report.approx_kl == 0.0
    assert list(report.log_prob_delta_by_timestep) == [801, 601, 401, 201, 1]
    assert report.pairs == 8 * 5 and report.updates == 1


def test_ratio_is_still_exactly_one_after_updates(make_run):
    run, learner, trajectories = made(make_run, "learner.minibatch=8")
    learner.update(trajectories, ADVANTAGES, ALL)
    report = learner.update(drawn(run, learner, 1), ADVANTAGES, ALL)
    assert report.max_abs_log_prob_delta == 0.0


@pytest.mark.parametrize("micro", [1, 3, 16, 64])
def test_micro_batches_change_nothing_but_rounding(make_run, micro):
    _, reference, trajectories = made(make_run, "learner.minibatch=8")
    _, learner, _ = made(make_run, "learner.minibatch=8", f"learner.micro_batch={micro}")
    for one in (reference, learner):
        record()(one)
    reference.update(trajectories, ADVANTAGES, ALL)
    report = learner.update(trajectories, ADVANTAGES, ALL)
    assert report.max_abs_log_prob_delta < rounding.log_prob(learner, trajectories)
    expected, gradient = (np.concatenate(one.gradients[0], axis=None) for one in (reference, learner))
    apart = np.linalg.norm(gradient - expected) / np.linalg.norm(expected)
    assert apart < rounding.standardised(learner, trajectories)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_base_trains_fp32_lora(make_run, precision):
    _, learner, trajectories = made(make_run, "learner.minibatch=8", f"policy.dtype={precision}")
    before = learner.denoiser.weights()
    report = learner.update(trajectories, ADVANTAGES, ALL)
    assert {weight.dtype for weight in learner.denoiser.trainable.values()} == {torch.float32}
    assert learner.denoiser.unet.conv_in.weight.dtype != torch.float32
    assert report.max_abs_log_prob_delta == 0.0
    assert any(not np.array_equal(before[name], after) for name, after in learner.denoiser.weights().items())


def test_full_fine_tuning_changes_every_weight(make_run):
    _, learner, trajectories = made(make_run, "policy.train=full", "learner.minibatch=8")
    before = learner.denoiser.weights()
    report = learner.update(trajectories, ADVANTAGES, ALL)
    assert report.max_abs_log_prob_delta == 0.0
    after = learner.denoiser.weights()
    assert "conv_in.weight" in after
    assert all(not np.array_equal(before[name], after[name]) for name in after)


def test_lora_leaves_the_base_alone_and_gradient_checkpointing_gives_the_same(make_run):
    _, plain, trajectories = made(make_run, "learner.minibatch=8")
    _, saving, _ = made(make_run, "learner.minibatch=8", "learner.gradient_checkpointing=true")
    base = plain.denoiser.unet.conv_in.weight.clone()
    plain.update(trajectories, ADVANTAGES, ALL)
    saving.update(trajectories, ADVANTAGES, ALL)
    assert torch.equal(base, plain.denoiser.unet.conv_in.weight)
    assert plain.policy().digest == saving.policy().digest


def test_without_guidance_the_unet_is_asked_once(make_run):
    _, learner, trajectories = made(make_run, "policy.guidance=1", "learner.minibatch=8")
    sizes = []
    learner.denoiser.unet.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    assert learner.update(trajectories, ADVANTAGES, ALL).max_abs_log_prob_delta == 0.0
    assert sizes == [4] * 10


def test_a_positive_advantage_makes_what_was_drawn_more_likely(make_run):
    _, learner, trajectories = made(make_run, "lag=1", "learner.minibatch=8", "learner.lr=1e-3", "learner.clip=10")
    learner.update(trajectories, np.ones(8), ALL)
    report = learner.update(trajectories, np.ones(8), ALL)  # the same images, one update later
    assert report.lag == 1
    assert report.loss < -1  # the mean of -A rho with A = 1: rho rose above 1


def test_masked_images_do_not_move_the_weights(make_run):
    _, learner, trajectories = made(make_run)
    _, other, _ = made(make_run)
    kept = np.array([True, False] * 4)
    learner.update(trajectories, ADVANTAGES, kept)
    spoiled = [dataclasses.replace(t, log_probs_BT=t.log_probs_BT.copy()) for t in trajectories]
    for trajectory in spoiled:
        trajectory.log_probs_BT[1::2] = 1e6
    report = other.update(spoiled, np.where(kept, ADVANTAGES, 1e6), kept)
    assert learner.policy().digest == other.policy().digest
    assert report.pairs == 4 * 5


def test_timestep_fraction_draws_a_part_anew_for_every_image(make_run):
    _, learner, _ = made(make_run, "learner.timestep_fraction=0.5", "learner.inner_epochs=2")
    epochs = [np.concatenate(list(learner._minibatches(epoch, ALL))) for epoch in range(2)]
    for pairs in epochs:
        images, counts = np.unique(pairs[:, 0], return_counts=True)
        assert images.tolist() == list(range(8)) and set(counts) == {2}
    assert not np.array_equal(epochs[0], epochs[1])
    assert len({tuple(epochs[0][epochs[0][:, 0] == image][:, 1]) for image in range(8)}) > 1


def test_only_steps_of_the_window_are_trained(make_run):
    _, learner, trajectories = made(make_run, "learner.window=[0, -2]")
    pairs = np.concatenate(list(learner._minibatches(0, ALL)))
    assert {tuple(pair) for pair in pairs} == {(image, index) for image in range(8) for index in range(3)}
    assert len(learner.update(trajectories, ADVANTAGES, ALL).log_prob_delta_by_timestep) == 3


SUBSETS = {
    "window": ("learner.window=[1, -1]",),
    "fraction": ("learner.timestep_fraction=0.5",),
    "two epochs": ("learner.window=[0, -1]", "learner.timestep_fraction=0.5", "learner.inner_epochs=2"),
    "decoupled": ("learner.timestep_fraction=0.5", "learner.correction=decoupled"),
    "rwr": ("learner.algorithm=rwr",),
}


@pytest.mark.parametrize("subset", SUBSETS)
def test_a_trajectory_holds_the_states_that_are_trained_and_no_others(make_run, subset):
    run, learner, trajectories = made(make_run, *SUBSETS[subset])
    expected = np.zeros((8, 6), bool)
    for epoch in range(run.learner.inner_epochs):
        for image, index in np.concatenate(list(learner._minibatches(epoch, ALL))):
            expected[image, [-1] if learner.regression else [index, index + 1]] = True
    np.testing.assert_array_equal(np.concatenate([t.held_BS for t in trajectories]), expected)
    assert sum(len(t.states_NCHW) for t in trajectories) == expected.sum() < expected.size


@pytest.mark.parametrize("subset", SUBSETS)
def test_from_whole_trajectories_the_same_is_learned(make_run, subset):
    run, learner, trajectories = made(make_run, *SUBSETS[subset])
    whole = drawn(make_run(), learner)
    assert all(t.held_BS.all() for t in whole) and not any(t.held_BS.all() for t in trajectories)
    other = Learner(run, find(run.policy.base))
    for one, batch in ((learner, trajectories), (other, whole)):
        one.update(batch, np.abs(ADVANTAGES), np.array([True] * 6 + [False, True]))
    assert learner.policy().digest == other.policy().digest != trajectories[0].digest


def test_the_ratio_is_exactly_one_for_scattered_timesteps_too(make_run):
    run, learner, trajectories = made(make_run, "learner.minibatch=8", "learner.timestep_fraction=0.5")
    learner.update(trajectories, ADVANTAGES, ALL)
    report = learner.update(drawn(run, learner, 1), ADVANTAGES, ALL)
    assert report.max_abs_log_prob_delta == 0.0 and report.pairs == 8 * 2


def test_trajectories_that_lack_what_the_step_trains_are_refused(make_run):
    _, learner, trajectories = made(make_run, "lag=1", "learner.timestep_fraction=0.5")
    learner.update(trajectories, ADVANTAGES, ALL)
    with pytest.raises(DeliveryError, match=r"of step 2 lack \d+ of the states that it trains"):
        learner.update(trajectories, ADVANTAGES, ALL)


def test_a_window_without_noise_is_refused(make_run, tmp_path):
    run = make_run("learner.window=[-1, 5]")
    folder = shutil.copytree(run.policy.base, tmp_path / "last step without noise")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "set_alpha_to_one": True}))
    with pytest.raises(InputError, match="only steps with sigma = 0"):
        Learner(run, find(str(folder)))


def test_score_function_and_importance_sampling_agree_on_the_first_update_bit_for_bit(make_run):
    _, sampling, trajectories = made(make_run, "learner.minibatch=8")
    _, score, _ = made(make_run, "learner.minibatch=8", "learner.algorithm=ddpo-sf")
    sampling.update(trajectories, ADVANTAGES, ALL)
    score.update(trajectories, ADVANTAGES, ALL)
    assert sampling.policy().digest == score.policy().digest  # the ratio is exactly one


def test_kl_holds_the_policy_near_its_base(make_run):
    options = ("learner.lr=1e-2", "learner.minibatch=8", "learner.inner_epochs=4")
    _, free, trajectories = made(make_run, *options)
    _, held, _ = made(make_run, *options, "learner.kl=100")
    assert np.isnan(free.update(trajectories, ADVANTAGES, ALL).base_kl)  # not asked for, not computed
    assert held.update(trajectories, ADVANTAGES, ALL).base_kl > 0
    drift = [float(np.abs(_outputs(learner) - _outputs(learner, base=True)).mean()) for learner in (free, held)]
    assert 0 < drift[1] < drift[0]


def _outputs(learner: Learner, base: bool = False) -> np.ndarray:
    x = torch.linspace(-1, 1, 256).reshape(1, 4, 8, 8)
    text = torch.ones(1, 24, learner.denoiser.unet.config["cross_attention_dim"])
    c, null = (Condition(part, torch.zeros(1, 0)) for part in (text, 0 * text))
    with torch.no_grad(), learner.denoiser.as_base() if base else nullcontext():
        return learner.denoiser.output(x, torch.tensor([500]), c, null).numpy()


def test_rwr_regresses_on_the_images_with_weight_and_on_no_others(make_run):
    options = ("learner.algorithm=rwr", "learner.inner_epochs=3")
    _, learner, trajectories = made(make_run, *options)
    weights = np.array([1.0, 0.0] * 4)
    report = learner.update(trajectories, weights, ALL)
    assert report.pairs == 4 * 3 and report.updates == 3 and report.loss > 0 and report.clip_fraction == 0.0
    spoiled = [dataclasses.replace(t, states_NCHW=t.states_NCHW.copy()) for t in trajectories]
    for trajectory in spoiled:
        trajectory.states_NCHW[1::2] = 9.0  # of each image x_0 alone is held
    _, other, _ = made(make_run, *options)
    other.update(spoiled, weights, ALL)
    assert other.policy().digest == learner.policy().digest


def test_rwr_teaches_the_denoiser_the_weighted_images(make_run):
    _, learner, trajectories = made(make_run, "learner.algorithm=rwr", "learner.inner_epochs=30", "learner.lr=1e-2")
    losses = [learner.update(trajectories, np.ones(8), ALL).loss]
    learner.known.append((0, trajectories[0].digest))
    losses.append(learner.update(trajectories, np.ones(8), ALL).loss)
    assert losses[1] < losses[0]


def test_the_average_follows_the_weights_and_is_what_others_load(make_run, tmp_path):
    run, learner, trajectories = made(make_run, "learner.ema=0.9", "learner.lr=1e-2")
    start = learner.denoiser.weights()
    learner.update(trajectories, ADVANTAGES, ALL)  # two updates: decays 2/11 and 3/12 (lower than 0.9)
    state = learner.state()
    name = max(start, key=lambda key: float(np.abs(state[f"weights/{key}"] - start[key]).max()))
    assert not np.array_equal(state[f"average/{name}"], state[f"weights/{name}"])
    whole = checkpoint.Checkpoint(1, state, [learner.policy()], {})
    path = checkpoint.save(tmp_path, whole, run, find(run.policy.base))
    exported = load_file(path / lora.LORA_FILE)["unet." + name.replace(".default", "")]
    np.testing.assert_array_equal(exported, state[f"average/{name}"])
    resumed = Learner(run, find(run.policy.base))
    resumed.restore(1, checkpoint.load(path, run).learner, list(learner.known))
    for one in (learner, resumed):
        one.known.append((0, trajectories[0].digest))
        one.update(trajectories, ADVANTAGES, ALL)
    np.testing.assert_array_equal(learner.state()[f"average/{name}"], resumed.state()[f"average/{name}"])


def test_the_average_starts_with_short_memory(make_run):
    _, learner, trajectories = made(make_run, "learner.ema=0.5", "learner.minibatch=8")
    before = {name: mean.clone() for name, mean in learner.average.items()}
    learner.update(trajectories, ADVANTAGES, ALL)
    for name, weight in learner.denoiser.trainable.items():  # one update: decay 2/11
        torch.testing.assert_close(learner.average[name], 2 / 11 * before[name] + 9 / 11 * weight.detach())


def test_a_trajectory_of_unknown_weights_is_refused(make_run):
    _, learner, trajectories = made(make_run)
    forged = [dataclasses.replace(trajectories[0], digest="0" * 64), trajectories[1]]
    with pytest.raises(DeliveryError, match="did not load"):
        learner.update(forged, ADVANTAGES, ALL)


def test_a_trajectory_older_than_lag_is_refused(make_run):
    _, learner, trajectories = made(make_run)
    learner.update(trajectories, ADVANTAGES, ALL)
    with pytest.raises(DeliveryError, match="within lag 0"):
        learner.update(trajectories, ADVANTAGES, ALL)


def test_other_timesteps_are_refused(make_run):
    _, learner, trajectories = made(make_run)
    moved = [dataclasses.replace(t, timesteps_T=t.timesteps_T + 1) for t in trajectories]
    with pytest.raises(DeliveryError, match="timesteps"):
        learner.update(moved, ADVANTAGES, ALL)


MIXED_UP = {  # which images' trajectories come, of chunks of four; and what is said
    "in another order": ([1, 0], "image 4 where image 0 is due"),
    "twice": ([0, 0], "number 5, image 0 where image 4 is due"),
    "not all": ([0], "came as 4 of 8 images; .* number 5, none where image 4 is due"),
    "too many": ([0, 1, 1], "came as 12 of 8 images; .* number 9, image 4 where none is due"),
}


@pytest.mark.parametrize("case", MIXED_UP)
def test_a_batch_that_is_not_its_prompts_is_refused_and_nothing_is_learned(make_run, case):
    order, said = MIXED_UP[case]
    samplers, rewards, learner = local_pools(run := make_run())
    scored = rewards.score(samplers.sample(Draw(run, source(run.prompts))(0), learner.policy())).wait()
    mixed = dataclasses.replace(scored, chunks=[scored.chunks[place] for place in order])
    with pytest.raises(DeliveryError, match=said):
        learner.update(mixed, ADVANTAGES)
    assert learner.step == 0 and learner.update(scored, ADVANTAGES).version == 1


def test_restored_learner_goes_on_bit_for_bit(make_run):
    run, learner, trajectories = made(make_run)
    learner.update(trajectories, ADVANTAGES, ALL)
    resumed = Learner(run, find(run.policy.base))
    resumed.restore(learner.step, learner.state(), list(learner.known))
    batch = drawn(run, learner, 1)
    learner.update(batch, ADVANTAGES, ALL)
    resumed.update(batch, ADVANTAGES, ALL)
    assert learner.policy().digest == resumed.policy().digest


def test_a_checkpoint_from_before_a_key_was_there_has_its_default(make_run, tmp_path):
    run, learner, _ = made(make_run)
    whole = checkpoint.Checkpoint(0, learner.state(), [learner.policy()], {})
    path = checkpoint.save(tmp_path, whole, run, find(run.policy.base))
    state = json.loads((path / "state.json").read_text())
    del state["run"]["gpu"], state["run"]["learner"]["old_log_probs"]
    (path / "state.json").write_text(json.dumps(state))
    sums = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(sums | {"state.json": checkpoint.sum_of(path / "state.json")}))
    assert checkpoint.load(path, run).step == 0
    assert checkpoint.load(path, make_run("gpu.graphs=false")).step == 0  # changes no number
    with pytest.raises(CheckpointError, match=r"gpu.tf32 = False there, True now"):
        checkpoint.load(path, make_run("gpu.tf32=true"))
