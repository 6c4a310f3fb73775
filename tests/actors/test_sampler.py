"""The sampler: an image is a function of weights, prompt, seed and the chunk's size."""

from __future__ import annotations

import dataclasses

import numpy as np
import plain_diffusers
import pytest
import torch

from actors.prompts import Draw, fixed, plain, source
from actors.sampler import Sampler
from ddpo.base import find
from ddpo.condition import Condition
from ddpo.denoiser import Denoiser
from ddpo.types import Prompts, Trajectory
from ddpo.weights import pack

pytestmark = pytest.mark.numbers


@pytest.fixture
def sampler_and_policy(make_run):
    run = make_run()
    base = find(run.policy.base)
    return Sampler(run, base), pack(Denoiser(base, run.policy, 0).weights(), 0), run


def batch(*texts: str) -> Prompts:
    """The first images of batch 0, with noise of their own."""
    return dataclasses.replace(fixed(plain(list(texts)), 3), step=0, ids=tuple(range(len(texts))))


def states(trajectory: Trajectory) -> np.ndarray:
    """(B, S, C, H, W) of a trajectory that holds them all."""
    assert trajectory.held_BS.all()
    return trajectory.states_NCHW.reshape(*trajectory.held_BS.shape, *trajectory.states_NCHW.shape[1:])


def test_a_chunk_has_every_state_and_fits_together(sampler_and_policy):
    sampler, policy, _ = sampler_and_policy
    images, trajectory, receipt = sampler.sample(batch("a cat", "a dog", "a cat", "a fox"), policy)
    assert images.pixels_BYX3.shape == (4, 16, 16, 3) and images.pixels_BYX3.dtype == np.uint8
    assert states(trajectory).shape == (4, 6, 4, 8, 8) and trajectory.log_probs_BT.shape == (4, 5)
    assert trajectory.text_BLD.shape == (4, 24, 16) and trajectory.null_LD.shape == (24, 16)
    assert trajectory.pooled_BP.shape == (4, 0) and trajectory.null_pooled_P.shape == (0,)
    assert images.ids == trajectory.ids == receipt.ids
    assert (trajectory.version, trajectory.digest) == (0, policy.digest) == (receipt.version, receipt.digest)


def test_of_pictures_that_nobody_trains_on_no_state_is_kept(sampler_and_policy):
    sampler, policy, _ = sampler_and_policy
    images, trajectory, _ = sampler.sample(fixed(plain(["a cat", "a dog"]), 3), policy)
    assert images.pixels_BYX3.shape == (2, 16, 16, 3) and np.isnan(trajectory.log_probs_BT).all()
    assert trajectory.states_NCHW.shape == (0, 4, 8, 8) and not trajectory.held_BS.any()


def test_kl_to_the_base_is_measured_on_grids_and_where_the_reward_pays_for_it(make_run):
    run = make_run()
    base = find(run.policy.base)
    denoiser = Denoiser(base, run.policy, 0)
    start = pack(denoiser.weights(), 0)
    moved = pack({name: weight + 0.05 for name, weight in denoiser.weights().items()}, 1)
    grid, part = fixed(source(run.prompts), 3), Draw(run, source(run.prompts))(0).chunks(4)[0]
    sampler = Sampler(run, base)
    assert sampler.sample(grid, start)[2].kl_B.tolist() == [0.0, 0.0]
    assert np.isnan(sampler.sample(part, moved)[2].kl_B).all()
    paying = Sampler(make_run("advantage.kl=1"), base)
    _, trajectory, receipt = paying.sample(part, moved)
    denoiser.load(moved)
    by_hand = np.zeros(4)
    for index in range(5):
        given = torch.tensor(states(trajectory)[:, index]), torch.full((4,), index), *texts(trajectory)
        with torch.no_grad():
            p, q = denoiser.step(*given), denoiser.base_step(*given)
        by_hand += ((p.mean_BCHW - q.mean_BCHW) ** 2 / (2 * p.std_B[0] ** 2)).mean((1, 2, 3)).numpy() / 5
    assert (receipt.kl_B > 0).all()
    np.testing.assert_allclose(receipt.kl_B, by_hand, rtol=1e-5)


def texts(trajectory: Trajectory) -> tuple[Condition, Condition]:
    c = Condition(torch.tensor(trajectory.text_BLD), torch.tensor(trajectory.pooled_BP))
    null = Condition(torch.tensor(trajectory.null_LD)[None], torch.tensor(trajectory.null_pooled_P)[None])
    return c, null.expand(len(trajectory.ids))


def test_the_same_call_gives_the_same_bits_and_seeds_are_per_image(sampler_and_policy):
    sampler, policy, _ = sampler_and_policy
    prompts = batch(*["a cat"] * 4)
    first, second = (states(sampler.sample(prompts, policy)[1]) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    starts = {state.tobytes() for state in first[:, 0]}
    assert len(starts) == 4


def test_neighbours_in_a_chunk_do_not_matter(sampler_and_policy):
    sampler, policy, _ = sampler_and_policy
    one = sampler.sample(batch("a cat", "a dog", "a fox", "a cow"), policy)[1]
    other = sampler.sample(batch("a cat", "a bee", "a bat", "a rat"), policy)[1]
    assert states(one)[0].tobytes() == states(other)[0].tobytes()


def test_the_chain_is_plain_diffusers_with_the_same_noise(sampler_and_policy, model):
    sampler, policy, run = sampler_and_policy
    images, trajectory, _ = sampler.sample(fixed(plain(["a cat"]), 3), policy)
    base = find(str(model))
    pipe = plain_diffusers.pipeline(base)
    theirs = plain_diffusers.draw(pipe, base, run.policy, "a cat", *fixed(plain(["a cat"]), 3).seeds)
    assert trajectory.timesteps_T.tolist() == pipe.scheduler.timesteps.tolist()
    assert np.abs(images.pixels_BYX3 - theirs).max() <= 1


def test_weights_are_loaded_and_their_digest_is_read_from_the_module(sampler_and_policy):
    sampler, policy, _ = sampler_and_policy
    moved = {name: array + 0.1 for name, array in sampler.denoiser.weights().items()}
    prompts = batch("a cat")
    before = sampler.sample(prompts, policy)[1]
    after = sampler.sample(prompts, pack(moved, 1))[1]
    assert after.digest == pack(moved, 1).digest != before.digest
    assert not np.array_equal(states(before), states(after))
    assert states(sampler.sample(prompts, policy)[1]).tobytes() == states(before).tobytes()


def test_a_skipped_load_shows_in_the_digest(sampler_and_policy):
    sampler, _, _ = sampler_and_policy
    sampler.denoiser.load_weights = lambda weights: None
    moved = pack({name: array + 0.1 for name, array in sampler.denoiser.weights().items()}, 1)
    assert sampler.sample(fixed(plain(["a cat"]), 3), moved)[1].digest != moved.digest


def test_an_image_that_could_not_be_drawn_is_told_of_and_shown_to_no_reward(sampler_and_policy, monkeypatch):
    sampler, policy, _ = sampler_and_policy
    prompts = batch("a cat", "a dog", "a fox", "a cat")
    whole, _, receipt = sampler.sample(prompts, policy)
    chain, decode = sampler._chain, sampler.vae.decode

    def broken_chain(*given):
        states, log_probs, kl = chain(*given)
        states[1, 3, 0, 0, 0] = float("inf")
        return states, log_probs, kl

    def broken_decode(latents, return_dict):
        (decoded,) = decode(latents, return_dict=return_dict)
        decoded[3, 0, 2, 2] = float("nan")
        return (decoded,)

    monkeypatch.setattr(sampler, "_chain", broken_chain)
    monkeypatch.setattr(sampler.vae, "decode", broken_decode)
    images, trajectory, broken = sampler.sample(prompts, policy)
    assert broken.failures == {1: "the denoiser gave NaN or infinity", 3: "the decoder gave NaN or infinity"}
    assert images.ids == (0, 2) and images.text == ("a cat", "a fox") and len(images.metadata) == 2
    np.testing.assert_array_equal(images.pixels_BYX3, whole.pixels_BYX3[[0, 2]])
    assert trajectory.ids == broken.ids == prompts.ids and not receipt.failures
    assert broken.pixels == (receipt.pixels[0], "", receipt.pixels[2], "")


def test_draw_is_a_function_of_seed_and_batch(make_run):
    run = make_run()
    draw = Draw(run, source(run.prompts))
    assert draw(3) == Draw(run, source(run.prompts))(3)
    assert draw(0).seeds != draw(1).seeds and draw(0).ids == tuple(range(8)) and draw(1).ids == tuple(range(8, 16))
    other = Draw(make_run("seed=1"), source(run.prompts))(3)
    assert other.seeds != draw(3).seeds


def test_chunks_are_consecutive_and_complete(make_run):
    run = make_run()
    prompts = Draw(run, source(run.prompts))(0)
    parts = prompts.chunks(3)
    assert [len(part.ids) for part in parts] == [3, 3, 2]
    assert sum((part.seeds for part in parts), ()) == prompts.seeds
