"""One's own aesthetic head: ratings, images, the honest report, and the reward that it becomes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import seeing
from PIL import Image

from ddpo.config import RewardConfig
from ddpo.errors import InputError, RewardError
from rewards.kinds import make
from rewards.ratings import pixels, read_ratings
from rewards.train_aesthetic import Recipe, correlation, split, train_head

pytestmark = pytest.mark.numbers
COUNT = 120


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny random CLIP."""
    return str(seeing.clip(tmp_path_factory.mktemp("clip") / "clip"))


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of noise pictures of many sizes, brighter or darker, and ratings.csv: twice the brightness, plus 3."""
    folder, rng = tmp_path_factory.mktemp("rated"), np.random.default_rng(0)
    lines = ["image,rating"]
    for number in range(COUNT):
        bright, size = rng.random(), rng.integers(20, 60, 2)
        Image.fromarray((255 * bright * rng.random((*size, 3)) ** 0.3).astype(np.uint8)).save(folder / f"{number}.png")
        lines += [f"{number}.png,{3 + 2 * bright + error}" for error in (-0.1, 0.1)]  # two people's ratings
    (folder / "ratings.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def head(clip: str, rated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained head."""
    out = tmp_path_factory.mktemp("head")
    train_head(rated / "ratings.csv", rated, clip, out, Recipe(epochs=120), say=lambda _: None)
    return out


def test_the_report_is_of_images_that_were_neither_trained_nor_chosen_on(head):
    held_out = json.loads((head / "head.json").read_text())["held_out"]
    assert held_out["images"] == 18 and held_out["pearson"] > 0.9 and held_out["spearman"] > 0.85
    assert held_out["mse"] < 0.3 * held_out["constant_mse"]
    parts = split([f"{number}.png" for number in range(COUNT)], 0)
    assert sorted(row for part in parts.values() for row in part) == list(range(COUNT))
    assert [len(parts[name]) for name in ("test", "choose", "train")] == [18, 18, 84]


def test_ratings_without_a_reason_are_reported_as_not_predicted(clip, rated, tmp_path):
    rng = np.random.default_rng(1)
    lines = [f"{number}.png,{rng.random()}" for number in range(COUNT)]
    (tmp_path / "r.csv").write_text("image,rating\n" + "\n".join(lines))
    result = train_head(tmp_path / "r.csv", rated, clip, tmp_path, Recipe(epochs=60), say=lambda _: None)
    assert abs(result.held_out.pearson) < 0.5 and result.held_out.mse > 0.8 * result.held_out.constant_mse


def test_the_head_is_a_reward_that_gives_ratings(clip, rated, head):
    reward = make(RewardConfig("aesthetic", model=clip, head=str(head)), "")
    truth = read_ratings(rated / "ratings.csv")
    names = [f"{number}.png" for number in range(COUNT)]
    said = [reward(pixels(rated / name)[None], ["a cat"], [{}])[0][0] for name in names]
    assert correlation(np.array(said), np.array([truth[name] for name in names])) > 0.9
    assert min(said) > 2.5 and max(said) < 5.5  # on the scale of the ratings


def test_the_same_seed_gives_the_same_head_and_a_second_try_embeds_nothing(clip, rated, head):
    before, heard = (head / "aesthetic.safetensors").read_bytes(), []
    train_head(rated / "ratings.csv", rated, clip, head, Recipe(epochs=120), say=heard.append)
    assert (head / "aesthetic.safetensors").read_bytes() == before and heard == []
    train_head(rated / "ratings.csv", rated, clip, head, Recipe(epochs=120, seed=1), say=heard.append)
    assert (head / "aesthetic.safetensors").read_bytes() != before and heard == []


def test_an_image_that_changed_and_another_clip_are_embedded_anew(clip, rated, tmp_path):
    heard: list[str] = []
    other, images = str(seeing.clip(tmp_path / "clip", seed=5)), shutil.copytree(rated, tmp_path / "images")
    train_head(rated / "ratings.csv", images, clip, tmp_path, Recipe(epochs=1), say=lambda _: None)
    Image.new("RGB", (30, 30)).save(images / "7.png")
    train_head(rated / "ratings.csv", images, clip, tmp_path, Recipe(epochs=1), say=heard.append)
    train_head(rated / "ratings.csv", images, other, tmp_path, Recipe(epochs=1), say=heard.append)
    assert heard[0] == "1 images to embed" and heard[1] == f"{COUNT} images to embed"


@pytest.mark.parametrize(("seed", "width", "said"), [(5, 16, "is another CLIP"), (4, 12, "embeddings of 16 numbers")])
def test_a_head_refuses_another_clip(clip, head, tmp_path, seed, width, said):
    other = str(seeing.clip(tmp_path / "clip", seed=seed, width=width))
    with pytest.raises(RewardError, match=said) as caught:
        make(RewardConfig("aesthetic", model=other, head=str(head)), "")
    assert f"was made for {clip}" in str(caught.value) and "Give `model`" in str(caught.value)


@pytest.mark.parametrize(("text", "said"), [
    ("file,score\na.png,1", "begins with file, score; its first line must name the columns image,rating"),
    ("", "begins with nothing"),
    ("image,rating\na.png,1\nb.png,good\nc.png,nan\n,3\nd.png", r"4 lines \(line 3, line 4, line 5, line 6\)"),
])
def test_a_csv_that_is_wrong_is_named_with_its_lines(tmp_path, text, said):
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        read_ratings(tmp_path / "r.csv")


def test_several_ratings_are_averaged_and_other_columns_left_alone(tmp_path):
    (tmp_path / "r.csv").write_text("who,image,rating\nann,a.png,1\nbob,a.png,4\nbob,b.png,2\n", encoding="utf-8-sig")
    assert read_ratings(tmp_path / "r.csv") == {"a.png": 2.5, "b.png": 2.0}


def test_avas_own_format_gives_the_mean_vote(tmp_path):
    lines = ["1 953619 0 1 5 17 38 36 15 6 5 1 1 22 1396", "2 953958 10 0 0 0 0 0 0 0 0 10 0 0 1"]
    (tmp_path / "AVA.txt").write_text("\n".join(lines))
    votes = [0, 1, 5, 17, 38, 36, 15, 6, 5, 1]
    mean = sum(count * mark for mark, count in enumerate(votes, 1)) / sum(votes)
    assert read_ratings(tmp_path / "AVA.txt") == {"953619.jpg": pytest.approx(mean), "953958.jpg": 5.5}
    (tmp_path / "AVA.txt").write_text("image,rating\na.png,1")
    with pytest.raises(InputError, match="line 1 is not 15 whole numbers"):
        read_ratings(tmp_path / "AVA.txt")


def test_missing_and_unreadable_images_are_counted_and_may_be_skipped(clip, rated, tmp_path):
    text, heard, images = (rated / "ratings.csv").read_text(), [], shutil.copytree(rated, tmp_path / "images")
    (images / "broken.png").write_bytes((images / "3.png").read_bytes()[:200])
    (tmp_path / "r.csv").write_text(text + "\nbroken.png,4" + "".join(f"\ngone{number}.png,4" for number in range(9)))
    with pytest.raises(InputError, match=r"missing: 9 rated files \(gone0.png, .*gone4.png, \.\.\.\).*--skip"):
        train_head(tmp_path / "r.csv", images, clip, tmp_path, Recipe(epochs=1), say=heard.append)
    result = train_head(tmp_path / "r.csv", images, clip, tmp_path, Recipe(epochs=1), skip=True, say=heard.append)
    assert result.images == COUNT and any("no image: 1 rated file (broken.png)" in text for text in heard)
    (tmp_path / "few.csv").write_text("image,rating\n0.png,1\n")
    with pytest.raises(InputError, match="1 rated images are too few"):
        train_head(tmp_path / "few.csv", rated, clip, tmp_path, Recipe(epochs=1), say=heard.append)
    (tmp_path / "same.csv").write_text("image,rating\n" + "".join(f"{number}.png,3\n" for number in range(COUNT)))
    with pytest.raises(InputError, match="every image is rated 3, so there is nothing to learn"):
        train_head(tmp_path / "same.csv", rated, clip, tmp_path, Recipe(epochs=1), say=heard.append)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F"])
@pytest.mark.parametrize("size", [(1, 1), (500, 3), (40, 30)])
def test_an_image_of_any_mode_and_size_is_embedded(clip, tmp_path, mode, size):
    path = tmp_path / ("a.tiff" if mode in ("CMYK", "F", "I") else "a.png")
    Image.new("RGB", size, (180, 180, 180)).convert("L").convert(mode).save(path)
    assert pixels(path).shape == (size[1], size[0], 3)
    assert make(RewardConfig("clipscore", model=clip), "")(pixels(path)[None], ["a cat"], [{}])[0][0] >= 0


def test_sixteen_bits_are_reduced_and_transparency_is_white(tmp_path):
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(tmp_path / "deep.png")
    assert pixels(tmp_path / "deep.png")[0, 0].tolist() == [128] * 3
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert pixels(tmp_path / "clear.png")[0, 0].tolist() == [255] * 3
