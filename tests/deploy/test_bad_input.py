"""Models, prompts, rewards and disks that are not as they should be: what a user is told, and what is left."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from terminal import leftovers, metrics, result

# The base model: refused from its JSON files, before anything is loaded.


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """The tiny model, to be spoilt."""
    return Path(shutil.copytree(model, tmp_path / "spoilt"))


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refused(train: Callable, *words: str) -> str:
    """Run into a refusal as wrong input; nothing may be left of the run."""
    answer = train(*words)
    assert answer.code == 2 and answer.out == "", answer
    assert not Path("runs").exists() or not list(Path("runs").iterdir())
    return answer.err


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "model"])
def test_a_missing_model_folder(train, name):
    said = refused(train, f"policy.base={name}")
    assert f"policy.base: there is no folder {name!r}. Give a folder in diffusers' layout" in said


def test_a_folder_that_is_no_diffusers_model(train, tmp_path):
    (tmp_path / "pictures").mkdir()
    said = refused(train, f"policy.base={tmp_path / 'pictures'}")
    assert "is not a diffusers model" in said and "model_index.json is missing" in said


def test_a_single_file_checkpoint(train, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert "there is no folder" in refused(train, f"policy.base={tmp_path / 'model.safetensors'}")


def test_a_flow_matching_model_is_refused_by_its_prediction(train, tmp_path):
    folder = tmp_path / "sd3"
    (folder / "scheduler").mkdir(parents=True)
    index = {"_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "SD3Transformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "FlowMatchEulerDiscreteScheduler"}')
    said = refused(train, f"policy.base={folder}")
    assert "is a flow-matching model (its scheduler is FlowMatchEulerDiscreteScheduler, prediction type: flow)" in said
    assert "DDIM step of a model that predicts epsilon or v" in said and "flow_grpo" in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_class_name", "FlowMatchHeunDiscreteScheduler"),
        ("prediction_type", "flow_prediction"),
        ("use_flow_sigmas", True),
    ],
)
def test_a_flow_matching_scheduler_in_a_stable_diffusion_folder(train, copy, key, value):
    change(copy / "scheduler" / "scheduler_config.json", **{key: value})
    assert "flow-matching model" in refused(train, f"policy.base={copy}")


def test_another_prediction_type(train, copy):
    change(copy / "scheduler" / "scheduler_config.json", prediction_type="sample")
    assert 'has prediction_type "sample"; the policy is defined for "epsilon"' in refused(train, f"policy.base={copy}")


def test_another_pipeline(train, copy):
    change(copy / "model_index.json", _class_name="StableDiffusionInpaintPipeline")
    said = refused(train, f"policy.base={copy}")
    assert "is a StableDiffusionInpaintPipeline; this version trains" in said and "inpainting or editing model" in said


def test_an_inpainting_unet_in_a_text_to_image_pipeline(train, copy):
    change(copy / "unet" / "config.json", in_channels=9)
    assert "takes 9 channels and a latent has 4: it is an inpainting" in refused(train, f"policy.base={copy}")


def test_sdxls_refiner(train, copy):
    change(copy / "model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline", requires_aesthetics_score=True)
    assert "is SDXL's refiner, which paints over a picture" in refused(train, f"policy.base={copy}")


def test_parts_of_two_models(train, copy, architectures):
    change(copy / "unet" / "config.json", addition_embed_type="text_time")
    assert "addition_embed_type = 'text_time'" in refused(train, f"policy.base={copy}")
    shutil.copytree(architectures["SDXL"] / "text_encoder_2", copy / "text_encoder_2")
    change(copy / "model_index.json", _class_name="StableDiffusionXLPipeline")
    change(copy / "unet" / "config.json", addition_embed_type=None)
    assert "these are parts of two models" in refused(train, f"policy.base={copy}")


def test_sdxl_without_its_second_text_encoder(train, architectures, tmp_path):
    folder = shutil.copytree(architectures["SDXL"], tmp_path / "xl")
    shutil.rmtree(folder / "text_encoder_2")
    assert "has no safetensors weights for text_encoder_2" in refused(train, f"policy.base={folder}")


def test_an_edm_scheduler(train, copy):
    change(copy / "scheduler" / "scheduler_config.json", _class_name="EDMDPMSolverMultistepScheduler")
    assert "has an EDMDPMSolverMultistepScheduler" in refused(train, f"policy.base={copy}")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("diffusion_pytorch_model.bin", "Pickled weights (.bin) are not loaded, since they can run code"),
        ("diffusion_pytorch_model.fp16.safetensors", "Variants (such as .fp16.safetensors) are not looked for"),
        ("something.else", "The folder is not complete"),
    ],
)
def test_weights_that_are_not_loaded(train, copy, name, reason):
    (copy / "unet" / "diffusion_pytorch_model.safetensors").rename(copy / "unet" / name)
    assert f"has no safetensors weights for unet. {reason}" in refused(train, f"policy.base={copy}")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("model_index.json", "{", "cannot be read"),
        ("model_index.json", "[]", "is damaged: it holds no table but a list"),
        ("unet/config.json", "{}", "the size of"),
        ("vae/config.json", '{"block_out_channels": 4}', "the size of"),
        ("unet/diffusion_pytorch_model.safetensors", "version https://git-lfs", "the UNet of"),
        ("vae/diffusion_pytorch_model.safetensors", "", "the autoencoder of"),
        ("text_encoder/model.safetensors", "x", "the text encoder of"),
    ],
)
def test_damaged_files_of_a_model(train, copy, file, content, said):
    (copy / file).write_text(content)
    answer = refused(train, f"policy.base={copy}")
    assert "policy.base: " in answer and said in answer


def test_lora_targets_that_match_nothing(train):
    assert "policy.lora_targets = ['to_x']" in refused(train, "policy.lora_targets=['to_x']")


# Prompts.


def test_an_empty_prompt_file(train, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n  \n")
    said = refused(train, "prompts.kind=from_file", f"prompts.path={tmp_path / 'prompts.txt'}")
    assert "prompts.txt holds no prompt; write one a line" in said


def test_a_missing_prompt_file(train):
    assert "prompts.path: cannot read none.txt" in refused(train, "prompts.kind=from_file", "prompts.path=none.txt")


@pytest.mark.parametrize("table", ["prompts.items", "images.prompts"])
def test_a_prompt_longer_than_the_tokenizer_takes(train, table):
    said = refused(train, f"{table}=['a cat', '{'very ' * 10}small cat']")
    assert "tokens long, this model reads 24" in said and "very very" in said


def test_several_wrong_files_are_reported_at_once(train):
    said = refused(
        train, "policy.base=/nowhere", "prompts.kind=from_file", "prompts.path=none.txt", "rewards.jpeg.kind=function",
        "rewards.jpeg.path=none.py",
    )
    assert "/nowhere" in said and "none.txt" in said and "none.py" in said


# A user's reward.


def test_a_missing_reward_file(train):
    said = refused(train, "rewards.mine.kind=function", "rewards.mine.path=none.py")
    assert "rewards.mine.path: cannot read none.py: No such file or directory" in said


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def reward(images, prompts, metadata)\n    return 1\n", "mine.py, line 1: expected ':'"),
        ("def score(images, prompts, metadata): ...\n", "defines no 'reward'; it defines: score"),
        ("# nothing yet\n", "defines no 'reward'; it defines: nothing"),
        ("x = '\0'", "mine.py, line 1: source code string cannot contain null bytes"),
    ],
)
def test_a_reward_file_that_cannot_be_used(train, reward_file, source, said):
    assert said in refused(train, *reward_file(source))


def failed(train: Callable, words: list[str]) -> str:
    """Run into a failure that is not the config's; nothing was learned, so nothing may be left."""
    answer = train(*words)
    assert answer.code == 1 and answer.out == "", answer
    assert list(Path("runs").iterdir()) == []
    return answer.err


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import nothing_of_this_name\ndef reward(i, p, m): ...", "failed while loading: ModuleNotFoundError: No "),
        ("import sys\nsys.exit(3)\ndef reward(i, p, m): ...", "failed while loading: SystemExit: 3"),
        ("reward = 3", "'reward' in the reward file"),
    ],
)
def test_a_reward_file_that_does_not_load(train, reward_file, source, said):
    assert said in failed(train, reward_file(source))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise OSError('no service')", "no image of step 1 got a reward, so there is nothing to learn from. "
                                        "First reason: reward 'jpeg' failed: OSError: no service"),
        ("raise SystemExit(3)", "First reason: reward 'jpeg' failed: SystemExit: 3"),
        ("return [1.0], {}", "returned 1 scores for 2 images"),
        ("return [float('nan')] * len(images), {}", "returned nan for image 0 of its chunk (2 of 2 are not finite)"),
        ("return [None] * len(images), {}", "First reason: reward 'jpeg': gave None, that is no score"),
        ("return [1e999] * len(images), {}", "returned inf for image 0"),
        ("return [1.0] * len(images)", "returned list; return a pair (scores, info)"),
        ("pass", "returned NoneType; return a pair (scores, info)"),
        ("return ['good'] * len(images), {}", "returned scores that are no numbers: ['good'"),
    ],
)
def test_a_reward_that_breaks_its_contract_stops_the_run(train, reward_file, body, said):
    assert said in failed(train, reward_file(f"def reward(images, prompts, metadata):\n    {body}\n"))


def test_the_line_of_a_users_mistake_is_named(train, reward_file, tmp_path):
    said = failed(train, reward_file("def reward(images, prompts, metadata):\n    x = 1\n    return images.wrong\n"))
    assert f"has no attribute 'wrong' ({tmp_path / 'mine.py'}, line 3)" in said


def test_a_reward_that_always_hangs(train, reward_file):
    words = reward_file("import time\ndef reward(images, prompts, metadata): time.sleep(60)\n")
    said = failed(train, [*words, "rewards.jpeg.timeout=0.2"])
    assert "no image of step 1 got a reward" in said and "reward 'jpeg' took more than 0.2 s" in said


SOMETIMES = """
import time
calls = 0
def reward(images, prompts, metadata):
    global calls
    calls += 1
    if calls in {calls}:
        {failure}
    return [float(image.mean()) for image in images], {{}}
"""


@pytest.mark.parametrize(
    ("failure", "calls", "why"),
    [
        ("raise ValueError('bad luck')", "{3, 4, 5}", "ValueError: bad luck"),  # asked three times
        ("time.sleep(60)", "{3}", "took more than 0.3 s"),
    ],
)
def test_images_without_a_score_are_masked_and_counted(train, reward_file, tmp_path, failure, calls, why):
    source = SOMETIMES.format(calls=calls, failure=failure)  # call 1 is the first grid, 2 and 3 are chunks
    answer = train(*reward_file(source), "rewards.jpeg.timeout=0.3")
    folder = tmp_path / "runs" / "small"
    assert answer.code == 0
    assert [line["images_masked"] for line in metrics(folder)] == [4, 0]
    assert result(folder)["images_masked"] == 4 and result(folder)["images_trained"] == 12
    masked = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    masked = [line for line in masked if line.get("fate") == "masked"]
    assert [(line["step"], line["image"]) for line in masked] == [(1, image) for image in (4, 5, 6, 7)]
    assert all(why in line["reason"] for line in masked)


def test_a_grid_without_scores_does_not_stop_the_run(train, reward_file, tmp_path):
    answer = train(*reward_file(SOMETIMES.format(calls="{1, 2, 3, 8, 9, 10}", failure="raise ValueError('bad luck')")))
    assert answer.code == 0 and result(tmp_path / "runs" / "small")["images_masked"] == 0
    scores = json.loads((tmp_path / "runs" / "small" / "images" / "scores.json").read_text())
    assert scores["000000"]["rewards"]["jpeg"] == [None, None]


# The disk.


@pytest.mark.parametrize("place", ["file/under", "/proc/ddpo"])
def test_a_run_folder_that_cannot_be_made(train, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    answer = train("--runs", place)
    assert answer.code == 2
    assert f"the run folder {place}/small cannot be written" in answer.err and "--runs FOLDER" in answer.err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def file_size_limit() -> Iterator[None]:
    """Put the limit on the size of files back, which stands for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


FILLING = """
import resource
calls = 0
def reward(images, prompts, metadata):
    global calls
    calls += 1
    if calls == 6:  # the grid, two chunks of step 1, two of step 2: the disk is full in step 3
        resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))
    return [float(image.mean()) for image in images], {{}}
"""


@pytest.mark.usefixtures("file_size_limit")
@pytest.mark.parametrize(("size", "name", "logged"), [(6000, "ledger.jsonl", 2), (12000, "checkpoints", 3)])
def test_a_disk_that_fills_up_leaves_whole_checkpoints(train, reward_file, tmp_path, size, name, logged):
    words = [*reward_file(FILLING.format(size=size)), "steps=4", "images.every=10"]
    answer = train(*words)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    folder = tmp_path / "runs" / "small"
    assert answer.code == 1 and answer.out == ""
    assert f"cannot write runs/small/{name}" in answer.err and "use --resume" in answer.err
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["000001", "000002"]
    assert leftovers(folder) == [] and len(metrics(folder)) == logged
    (tmp_path / "mine.py").write_text(FILLING.format(size="resource.RLIM_INFINITY"))
    resumed = train(*words, "--resume")
    assert resumed.code == 0 and "goes on after step 2 of 4" in resumed.err
    assert [line["step"] for line in metrics(folder)] == [1, 2, 3, 4]
