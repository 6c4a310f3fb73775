"""Every architecture that is trained, whole: our chain is diffusers' own, the ratio is one, the export loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import plain_diffusers
import pytest
import tiny
import torch

from actors.prompts import Draw, fixed, plain, source
from actors.sampler import Sampler
from actors.text import TextEncoder
from ddpo.base import BaseModel, find
from ddpo.config import Run
from ddpo.denoiser import Denoiser
from ddpo.errors import InputError
from ddpo.weights import pack
from learner import lora
from learner.learner import Learner

pytestmark = pytest.mark.numbers
ALL = np.ones(8, bool)
ADVANTAGES = np.array([1.0, -1.0, 0.5, 2.0, -0.5, 0.3, -2.0, 0.7])


@pytest.fixture
def on(make_run: Callable[..., Run], architectures: dict[str, Path]) -> Callable[..., tuple[Run, BaseModel]]:
    """on("SDXL", "learner.kl=1", ...): the small run on a tiny model of that architecture."""

    def make(name: str, *overrides: str) -> tuple[Run, BaseModel]:
        run = make_run(f"policy.base={architectures[name]}", "learner.minibatch=8", *overrides)
        return run, find(run.policy.base)

    return make


def moved(run: Run, base: BaseModel) -> dict[str, np.ndarray]:
    """LoRA weights that change the pictures."""
    rng = np.random.default_rng(0)
    start = Denoiser(base, run.policy, 0).weights()
    return {name: (w + 0.1 * rng.normal(size=w.shape)).astype(np.float32) for name, w in start.items()}


def ours(run: Run, base: BaseModel, weights: dict[str, np.ndarray]) -> tuple[np.ndarray, int]:
    """The sampler's picture of a cat, and its seed."""
    prompts = fixed(plain(["a cat"]), 3)
    return Sampler(run, base).sample(prompts, pack(weights, 0))[0].pixels_BYX3, prompts.seeds[0]


@pytest.mark.parametrize(("name", "guidance"), [("SD 2", 5.0), ("SDXL", 5.0), ("SDXL", 1.0)])
def test_the_exported_lora_draws_the_samplers_picture_in_plain_diffusers(on, tmp_path, name, guidance):
    run, base = on(name, f"policy.guidance={guidance}")
    weights = moved(run, base)
    lora.save(weights, run.policy, base, tmp_path)
    pixels, seed = ours(run, base, weights)
    theirs = plain_diffusers.draw(plain_diffusers.pipeline(base, tmp_path), base, run.policy, "a cat", seed)
    untrained = plain_diffusers.draw(plain_diffusers.pipeline(base), base, run.policy, "a cat", seed)
    assert np.abs(pixels - theirs).max() <= 1 < np.abs(pixels - untrained).max()


@pytest.mark.parametrize(("name", "train"), [("SD 2", "lora"), ("SDXL", "lora"), ("SDXL", "full")])
def test_the_ratio_is_exactly_one_and_the_update_changes_the_weights(on, name, train):
    run, base = on(name, f"policy.train={train}")
    learner, sampler = Learner(run, base), Sampler(run, base)
    for batch in range(2):
        before = learner.policy()
        drawn = [sampler.sample(part, before)[1] for part in Draw(run, source(run.prompts))(batch).chunks(4)]
        report = learner.update(drawn, ADVANTAGES, ALL)
        assert report.max_abs_log_prob_delta == 0.0 and report.ratio_min == report.ratio_max == 1.0
        assert report.grad_norm > 0 and learner.policy().digest != before.digest


@pytest.mark.parametrize("option", ["learner.kl=1", "learner.algorithm=rwr"])
def test_sdxl_learns_in_every_way(on, option):
    run, base = on("SDXL", option, "learner.inner_epochs=2")
    learner, sampler = Learner(run, base), Sampler(run, base)
    start = learner.policy()
    drawn = [sampler.sample(part, start)[1] for part in Draw(run, source(run.prompts))(0).chunks(4)]
    report = learner.update(drawn, np.abs(ADVANTAGES), ALL)
    assert learner.policy().digest != start.digest and (report.base_kl > 0) == ("kl" in option)


def test_sdxl_is_asked_with_both_texts_and_the_pictures_size(on):
    run, base = on("SDXL")
    sampler, asked = Sampler(run, base), []
    sampler.denoiser.unet.register_forward_pre_hook(
        lambda module, args, options: asked.append((args[2], options["added_cond_kwargs"])), with_kwargs=True
    )
    trajectory = sampler.sample(fixed(plain(["a cat", "a dog"]), 3), pack(sampler.denoiser.weights(), 0))[1]
    tokens, added = asked[0]
    pipe = plain_diffusers.pipeline(base)
    text, null, pooled, null_pooled = pipe.encode_prompt(["a cat", "a dog"])
    torch.testing.assert_close(tokens, torch.cat([null, text]))
    torch.testing.assert_close(added["text_embeds"], torch.cat([null_pooled, pooled]))
    assert added["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 4
    assert trajectory.pooled_BP.shape == (2, 12) and trajectory.text_BLD.shape == (2, 24, 40)


def test_the_empty_prompt_of_sdxl_is_what_its_model_index_says(architectures, make_run, tmp_path):
    folder = tiny.make_xl(tmp_path / "xl", force_zeros_for_empty_prompt=False)
    for base, zero in ((find(str(architectures["SDXL"])), True), (find(str(folder)), False)):
        null = TextEncoder(base, make_run().policy).null()
        _, text, _, pooled = plain_diffusers.pipeline(base).encode_prompt("a cat")
        torch.testing.assert_close(null.text_BLD, text)
        torch.testing.assert_close(null.pooled_BP, pooled)
        assert bool((null.text_BLD == 0).all()) is zero


@pytest.mark.parametrize(("name", "upcast", "expected"), [
    ("SDXL", True, torch.float32), ("SDXL", False, torch.float16), ("SD 2", True, torch.float16),
])
def test_sdxls_autoencoder_decodes_in_fp32_where_its_config_says_so(on, tmp_path, name, upcast, expected):
    run, base = on(name, "policy.dtype=float16")
    folder = shutil.copytree(base.folder, tmp_path / "copy")
    facts = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps(facts | {"force_upcast": upcast}))
    sampler = Sampler(run, find(str(folder)))
    images = sampler.sample(fixed(plain(["a cat"]), 3), pack(sampler.denoiser.weights(), 0))[0]
    assert sampler.vae.dtype == expected and images.pixels_BYX3.shape == (1, 16, 16, 3)


def test_a_policy_in_bfloat16_decodes_finer_than_half_a_grey_level(architectures):
    precise = {dtype: find(str(architectures["SD 1"])).vae_dtype(dtype) for dtype in ("float32", "float16", "bfloat16")}
    assert precise == {"float32": "float32", "float16": "float16", "bfloat16": "float16"}
    assert find(str(architectures["SDXL"])).vae_dtype("bfloat16") == "float32"  # float16 overflows there


def test_either_tokenizer_can_refuse_a_prompt(architectures, make_run, tmp_path):
    from actors.text import check_lengths

    folder = shutil.copytree(architectures["SDXL"], tmp_path / "copy")
    facts = json.loads((folder / "tokenizer_2" / "tokenizer_config.json").read_text())
    (folder / "tokenizer_2" / "tokenizer_config.json").write_text(json.dumps(facts | {"model_max_length": 7}))
    check_lengths(["a tiger"], find(str(architectures["SDXL"])))
    with pytest.raises(InputError, match="is 8 tokens long, this model reads 7"):
        check_lengths(["a tiger"], find(str(folder)))


def test_v_prediction_from_pure_noise_learns(make_run, tmp_path):
    folder = tiny.make_2(tmp_path / "zero", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    run = make_run(f"policy.base={folder}", "learner.minibatch=8")
    base = find(str(folder))
    learner, sampler = Learner(run, base), Sampler(run, base)
    drawn = [sampler.sample(part, learner.policy())[1] for part in Draw(run, source(run.prompts))(0).chunks(4)]
    report = learner.update(drawn, ADVANTAGES, ALL)
    assert drawn[0].timesteps_T[0] == 999 and report.max_abs_log_prob_delta == 0.0 and np.isfinite(report.grad_norm)
