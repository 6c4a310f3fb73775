"""`ddpo publish`: the folder, its card, and the upload to a hub on this machine; SDXL through the command line."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import tiny
import yaml
from PIL import Image
from terminal import result, write_run

from ddpo.base import find
from ddpo.source import ROOT
from deploy.__main__ import main

PROMPTS = ['a "cat" | dog', "an ant"]


@pytest.fixture(scope="module")
def finished(architectures: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on SDXL with two rewards, one of them watched."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(architectures["SDXL"], folder / "tiny-xl")
    (folder / "tiny-xl" / "README.md").write_text("---\nlicense: openrail++\n---\n# tiny\n")
    table = tiny.run(folder / "tiny-xl")
    table["prompts"]["items"] = PROMPTS
    table["rewards"]["detail"] = {"kind": "incompressibility", "weight": 0.0}
    file = write_run(folder / "small.toml", table)
    assert main(["train", str(file), "--in-process", "--runs", str(folder / "runs")]) == 0
    return folder / "runs" / "small"


@pytest.fixture
def published(ddpo, finished: Path, tmp_path: Path) -> Path:
    """What `ddpo publish` made of it."""
    answer = ddpo("publish", finished, "--out", "xl-lora")
    assert answer.code == 0 and answer.out.split() == ["xl-lora"] and answer.err == ""
    return tmp_path / "xl-lora"


def front(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def test_the_card_says_what_was_trained(published, finished):
    card = (published / "README.md").read_text()
    assert {path.name for path in published.iterdir()} == {
        "README.md", "before_after.png", "pytorch_lora_weights.safetensors"
    }
    metadata = front(card)
    assert metadata["library_name"] == "diffusers" and metadata["pipeline_tag"] == "text-to-image"
    assert {"ddpo", "lora", "stable-diffusion-xl"} <= set(metadata["tags"]) and metadata["license"] == "openrail++"
    assert "base_model" not in metadata  # a folder is no name on the hub, which would refuse the card
    assert result(finished)["lora_digest"] in card
    assert re.search(r"reward `jpeg` \| `compressibility`, weight 1: mean −\d\.\d+ in step 1, −\d\.\d+ in step 2", card)
    assert "reward `detail` | `incompressibility`, watched, not trained on: mean" in card
    assert '2, of 8 images each: 16 reward queries' in card and '2: a "cat" \\| dog; an ant' in card
    assert "[learner]" in card and "[ray]" not in card and str(finished.parent.parent / "tiny-xl") in card


def test_the_picture_is_of_the_first_and_the_last_grid(published, finished):
    with Image.open(published / "before_after.png") as picture:
        for step, left in ((0, 24), (2, 24 + 192)):
            with Image.open(finished / "images" / f"{step:06d}.png") as grid:
                expected = grid.convert("RGB").crop((0, 0, 16, 16)).resize((192, 192), Image.Resampling.LANCZOS)
            assert picture.crop((left, 24, left + 192, 24 + 192)).tobytes() == expected.tobytes()


def test_the_code_in_the_card_runs(published, finished, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (published / "README.md").read_text(), re.DOTALL)
    shutil.copytree(finished.parent.parent / "tiny-xl", published.parent / "tiny-xl")
    monkeypatch.chdir(published.parent)
    names: dict = {}
    exec(code, names)
    assert names["image"].size == (16, 16) and names["pipe"].get_active_adapters()


def test_sample_draws_with_sdxl(ddpo, finished):
    answer = ddpo("sample", finished, "a cat", "--steps", "2")
    assert answer.code == 0 and answer.err == ""
    with Image.open("samples/a-cat-0.png") as picture:
        assert picture.size == (16, 16)


def test_a_lone_checkpoint_of_menagerie_has_a_card_too(ddpo, finished, tmp_path):
    assert ddpo("train", "demo", "--in-process", "steps=1", "lag=0", "learner.images_per_step=2", "learner.minibatch=2",
                "actors.batch=2", "images.count=1", "policy.train=full", "policy.steps=4").code == 0
    shutil.copytree(tmp_path / "runs/demo/checkpoints/000001", tmp_path / "alone")
    assert ddpo("publish", "alone").out.split() == ["published/demo-1"]
    card = (tmp_path / "published/demo-1/README.md").read_text()
    assert "not logged here" in card and "before_after" not in card and "`menagerie` (it ships with ddpo)" in card
    assert "run this in a checkout" in card and (ROOT / "menagerie" / "model" / "model_index.json").is_file()
    assert 'UNet2DConditionModel.from_pretrained("demo-1", subfolder="unet")' in card
    assert front(card)["license_name"] == "apache-2.0-mit-cc-by-4.0" and "lora" not in front(card)["tags"]
    assert (tmp_path / "published/demo-1/unet/diffusion_pytorch_model.safetensors").is_file()


def test_publishing_again_replaces_ours_and_nothing_else(ddpo, finished, published):
    (published / "README.md").write_text((published / "README.md").read_text() + "more")
    assert ddpo("publish", finished, "--out", published).code == 0
    assert not (published / "README.md").read_text().endswith("more")
    (published / "notes.txt").write_text("mine")
    answer = ddpo("publish", finished, "--out", published)
    assert answer.code == 2 and "holds something else already (README.md, before_after.png, notes.txt)" in answer.err
    (published.parent / "repo").mkdir()
    (published.parent / "repo" / "README.md").write_text("# mine")
    assert ddpo("publish", finished, "--out", "repo").code == 2
    assert (published.parent / "repo" / "README.md").read_text() == "# mine"


# The hub.


def test_a_model_by_hub_name_is_downloaded_in_one_format_and_the_card_names_it(ddpo, architectures, place, tmp_path):
    offered = shutil.copytree(architectures["SDXL"], tmp_path / "offered")
    (offered / "README.md").write_text("---\nlicense: openrail++\n---\n")
    for spare in ("unet/diffusion_pytorch_model.fp16.safetensors", "unet/model.onnx", "sd_xl_base_1.0.safetensors",
                  "text_encoder_2/pytorch_model.bin", "vae_1_0/diffusion_pytorch_model.safetensors"):
        (offered / spare).parent.mkdir(exist_ok=True)
        (offered / spare).write_bytes(b"large")
    place.models["ann/base"] = offered
    file = write_run(tmp_path / "small.toml", tiny.run(Path("ann/base")))
    assert ddpo("train", file, "--in-process", "steps=1").code == 0
    downloaded = Path(find("ann/base").folder)
    assert {path.suffix for path in downloaded.rglob("*") if path.is_file()} == {".json", ".txt", ".md", ".safetensors"}
    assert len(list(downloaded.rglob("*.safetensors"))) == 4 and downloaded.joinpath("tokenizer_2").is_dir()
    assert ddpo("publish", "runs/small", "--out", "out").code == 0
    metadata = front(Path("out/README.md").read_text())
    assert (metadata["base_model"], metadata["base_model_relation"]) == ("ann/base", "adapter")
    assert metadata["license"] == "openrail++"


def test_a_plan_downloads_what_describes_a_model_and_none_of_its_weights(ddpo, architectures, place, tmp_path):
    place.models["ann/base"] = architectures["SDXL"]
    answer = ddpo("plan", write_run(tmp_path / "small.toml", tiny.run(Path("ann/base"))))
    assert answer.code == 0 and "gradients, Adam" in answer.out and "unknown: policy.base" not in answer.out
    assert not list(Path(find("ann/base", weights=False).folder).rglob("*.safetensors"))


def test_the_folder_is_uploaded_and_private(ddpo, finished, place, tmp_path):
    answer = ddpo("publish", finished, "--push-to-hub", "ann/xl")
    assert answer.code == 0 and answer.err == "", answer
    assert answer.out.split() == ["published/small-2", f"{place.url}/ann/xl"]
    assert place.private == {"ann/xl": True}
    folder = tmp_path / "published" / "small-2"
    assert place.files["ann/xl"] == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert 'pipe.load_lora_weights("ann/xl")' in place.files["ann/xl"]["README.md"].decode()
    assert place.cards[0] == place.files["ann/xl"]["README.md"].decode()


def test_what_everybody_can_read_is_asked_for(ddpo, finished, place):
    assert ddpo("publish", finished, "--push-to-hub", "ann/xl", "--public").code == 0
    assert place.private == {"ann/xl": False} and place.files.pop("ann/xl")
    answer = ddpo("publish", finished, "--push-to-hub", "ann/xl")
    assert answer.code == 2 and "is there already and everybody can read it" in answer.err
    assert place.files == {}


def test_a_hub_that_refuses_or_is_not_there(ddpo, finished, place, monkeypatch):
    place.token = "Bearer hf_other"
    answer = ddpo("publish", finished, "--push-to-hub", "ann/xl")
    assert answer.code == 1 and "ann/xl was not uploaded" in answer.err and "Invalid token" in answer.err
    assert "The folder published/small-2 is complete" in answer.err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    answer = ddpo("publish", finished, "--push-to-hub", "ann/xl")
    assert answer.code == 1 and "offline" in answer.err.lower()


@pytest.mark.parametrize(("words", "said"), [
    (("--push-to-hub", "xl"), "has no owner"), (("--push-to-hub", "a b/c"), "is no repository's name"),
    (("--public",), "nothing is uploaded without --push-to-hub"), (("--out", "small.toml"), "cannot be written"),
])
def test_what_is_wrong_is_said_before_anything_is_written(ddpo, finished, place, words, said, tmp_path):
    (tmp_path / "small.toml").write_text("")
    answer = ddpo("publish", finished, *words)
    assert answer.code == 2 and said in answer.err
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"] and place.private == {}


def test_without_a_token_nothing_starts(ddpo, finished, place, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    answer = ddpo("publish", finished, "--push-to-hub", "ann/xl")
    assert answer.code == 2 and "there is no token for the hub" in answer.err and not Path("published").exists()
