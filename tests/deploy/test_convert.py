"""`ddpo convert`: the recipes that were made from theirs by hand come out of their configurations again."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ddpo.config import Run, plain
from ddpo.errors import ConfigError, InputError
from ddpo.runfile import parse
from deploy.__main__ import main
from deploy.convert import OTHERWISE, SAME, SIZES, convert
from deploy.foreign import TRACKING
from deploy.recipes import find

ROOT = Path(__file__).resolve().parents[2]
BASE = """
import ml_collections

def get_config():
    config = ml_collections.ConfigDict()
    config.run_name = ""
    config.seed = 42
    config.allow_tf32 = True
    config.pretrained = pretrained = ml_collections.ConfigDict()
    pretrained.model = "runwayml/stable-diffusion-v1-5"
    config.sample = sample = ml_collections.ConfigDict()
    sample.num_steps = 50
    config.train = train = ml_collections.ConfigDict()
    train.learning_rate = 3e-4
    config.per_prompt_stat_tracking = ml_collections.ConfigDict()
    config.per_prompt_stat_tracking.buffer_size = 16
    config.per_prompt_stat_tracking.min_count = 16
    return config
"""
DGX = """
import imp, os
base = imp.load_source("base", os.path.join(os.path.dirname(__file__), "base.py"))
raise SystemExit("this file is read and never run")

def small():
    config = base.get_config()
    config.pretrained.model = "CompVis/stable-diffusion-v1-4"
    config.sample.batch_size = 8
    config.sample.num_batches_per_epoch = 4
    config.train.batch_size = 4
    config.train.gradient_accumulation_steps = 2
    config.prompt_fn = "imagenet_animals"
    config.reward_fn = "jpeg_compressibility"
    return config

def pretty():
    config = small()
    config.num_epochs = 200
    config.reward_fn = "aesthetic_score"
    config.prompt_fn = "simple_animals"
    config.per_prompt_stat_tracking = {"buffer_size": 32, "min_count": 16}
    return config

def odd():
    config = small()
    config.train.use_8bit_adam = True
    config.train.secret = 3
    config.logdir = os.environ["HOME"]
    config.reward_fn = "my_reward"
    config.prompt_fn = "imagenet_dogs"
    config.per_prompt_stat_tracking = None
    if config.seed:
        config.seed = 7
    return config

def get_config(name):
    return globals()[name]()
"""
TRL_EXAMPLE = {
    "num_epochs": 200, "sample_batch_size": 6, "sample_num_batches_per_epoch": 4, "train_batch_size": 3,
    "train_gradient_accumulation_steps": 1, "sample_num_steps": 50, "per_prompt_stat_tracking": True,
    "per_prompt_stat_tracking_buffer_size": 32, "tracker_project_name": "ddpo",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.py").write_text(BASE)
    (tmp_path / "dgx.py").write_text(DGX)
    return tmp_path


def converted(config: str | Path, gpus: int = 1) -> Run:
    text = convert(str(config), gpus)
    return parse(tomllib.loads(text), [], "converted")


def numbers(run: Run) -> tuple[object, ...]:
    """What decides what is learned, and not where."""
    return run.lag, run.policy, run.advantage, replace(run.learner, micro_batch=1, gpus=0.0), run.steps


@pytest.mark.parametrize(("function", "recipe"), [("small", "compressibility"), ("pretty", "aesthetic")])
def test_ddpo_pytorchs_eight_gpus_are_the_papers_recipe(folder, function, recipe):
    run, ours = converted(f"{folder}/dgx.py:{function}", gpus=8), find(recipe, [])
    assert numbers(run) == numbers(ours)
    assert run.prompts == ours.prompts
    assert [part.kind for part in run.rewards.values()] == [part.kind for part in ours.rewards.values()]
    assert (run.name, run.seed, run.actors.count, run.actors.batch) == (function, 42, 8, 8)


def test_trls_defaults_and_its_example_are_the_recipes_of_that_name(tmp_path):
    for name, options in (("trl-defaults", {}), ("trl-aesthetic", TRL_EXAMPLE)):
        (tmp_path / "trl.json").write_text(json.dumps(options))
        run, ours = converted(tmp_path / "trl.json"), find(name, [])
        assert numbers(run) == numbers(ours)
        assert (run.actors.batch, run.learner.micro_batch) == (ours.actors.batch, ours.learner.micro_batch)


def test_yaml_writes_small_numbers_in_its_own_way(tmp_path):
    lines = ("train_learning_rate: 3e-5", "mixed_precision: bf16", "use_lora: false", "seed: 7", "log_with:")
    (tmp_path / "trl.yaml").write_text("\n".join(lines))
    run = converted(tmp_path / "trl.yaml")
    assert (run.learner.lr, run.policy.dtype, run.policy.train, run.seed) == (3e-5, "bfloat16", "full", 7)


def test_what_has_no_counterpart_is_told(folder):
    text = convert(f"{folder}/dgx.py:odd", 1)
    notes = [line for line in text.splitlines() if line.startswith("#")]
    for part in ("train_use_8bit_adam = True", "train_secret = 3", "config.logdir = os.environ", "if config.seed",
                 "my_reward", "imagenet_dogs"):
        assert sum(part in note for note in notes) == 1, part
    run = parse(tomllib.loads(text), [], "converted")
    assert (run.advantage.over, run.rewards["reward"].path, run.prompts.path) == ("batch", "reward.py", "prompts.txt")


def test_what_asks_for_nothing_special_is_not_told(folder):
    assert len([line for line in convert(f"{folder}/dgx.py:small", 8).splitlines() if line.startswith("#")]) == 1


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        ("[1, 2]", InputError, "holds no table"),
        ("{a: [", InputError, "neither JSON nor YAML"),
        ('{"train_batch_size": 3, "sample_batch_size": 4}', ConfigError, "learner.minibatch"),
        ('{"sample_batch_size": "many"}', InputError, "no whole number"),
        ('{"mixed_precision": "fp8"}', ConfigError, "policy.dtype"),
    ],
)
def test_wrong_input_says_what(tmp_path, content, error, says):
    (tmp_path / "trl.json").write_text(content)
    with pytest.raises(error, match=says):
        convert(str(tmp_path / "trl.json"), 1)


def test_the_page_has_every_option():
    page = (ROOT / "docs" / "moving.md").read_text()
    rows = re.findall(r"^\| (.*?) \| (.*?) \|", page, re.MULTILINE)
    theirs = " ".join(first for first, _ in rows)
    assert [key for key in (*SAME, *SIZES, *OTHERWISE, "mixed_precision", TRACKING) if f"`{key}`" not in theirs] == []
    ours = {key for _, second in rows for key in re.findall(r"`((?:[a-z]+\.)+[a-z_12]+|steps|seed|lag)`", second)}
    assert set(SAME.values()) <= ours
    assert ours <= set(flat("", plain(find("demo", []))))


def flat(prefix: str, table: dict[str, Any]) -> list[str]:
    """All keys of a run file, dotted."""
    keys = [(f"{prefix}{key}", value) for key, value in table.items()]
    return [name for key, value in keys for name in (flat(f"{key}.", value) if isinstance(value, dict) else [key])]


def test_the_command(folder, capsys):
    assert main(["convert", f"{folder}/dgx.py:small", "--gpus", "8"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["learner"]["minibatch"] == 64
    assert main(["convert", f"{folder}/dgx.py"]) == 2
    assert "small, pretty, odd" in capsys.readouterr().err
    assert main(["convert", f"{folder}/none.json"]) == 2
