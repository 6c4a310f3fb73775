"""Rewards that look: alignment, satisfaction, aesthetic, CLIP scores, on tiny random models of the real classes."""

from __future__ import annotations

import numpy as np
import pytest
import seeing
import torch
from safetensors.torch import save_file

from ddpo.config import RewardConfig
from ddpo.errors import DeviceError, InputError, RewardError
from ddpo.runfile import parse
from ddpo.types import Images
from rewards.aesthetic import Head
from rewards.compare import Comparer
from rewards.describe import Describer
from rewards.locate import check, locate
from rewards.worker import RewardWorker

pytestmark = pytest.mark.numbers


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of tiny models, by name."""
    root = tmp_path_factory.mktemp("seeing")
    made = {name: str(getattr(seeing, name)(root / name)) for name in ("llava", "clip", "bert", "deberta")}
    return made | {"silent": str(seeing.llava(root / "silent", silent=True))}


def images(count: int, height: int = 64, width: int = 64) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def scored(config: RewardConfig, count: int, metadata: dict | None = None, size: tuple[int, int] = (64, 64)):
    chunk = Images(tuple(range(count)), ("a cat",) * count, (metadata or {},) * count, images(count, *size))
    return RewardWorker("seen", config, "").score(chunk)


def alignment(models: dict[str, str], llava: str = "llava", compare: str = "bert") -> RewardConfig:
    return RewardConfig("alignment", model=models[llava], compare=models[compare], layer=1, max_tokens=6)


@pytest.mark.parametrize("compare", ["bert", "deberta"])
@pytest.mark.parametrize(("count", "size"), [(1, (64, 64)), (3, (48, 100))])
def test_alignment_describes_and_compares(models, compare, count, size):
    scores = scored(alignment(models, compare=compare), count, size=size)
    assert not scores.failures and len(scores.values) == count
    assert all(-1 <= value <= 1.0001 for value in scores.values.values())
    assert all(caption for caption in scores.info["caption"])
    assert len(scores.info["precision"]) == len(scores.info["f1"]) == count


def test_recall_is_bert_scores_recall_against_the_reference(models):
    scores = scored(alignment(models), 2)
    comparer = Comparer(models["bert"], 1, "cpu")
    _, recall, _ = comparer.compare(scores.info["caption"], ["The image contains a cat"] * 2)
    np.testing.assert_allclose(list(scores.values.values()), recall, atol=1e-5)


def test_the_same_text_scores_one_and_another_less(models):
    comparer = Comparer(models["bert"], 2, "cpu")
    reference = "the image contains a cat"
    _, recall, _ = comparer.compare([reference, "a dog riding a bike"], [reference] * 2)
    assert recall[0] == pytest.approx(1, abs=1e-4) and recall[1] < 0.99


@pytest.mark.parametrize("compare", ["bert", "deberta"])
def test_a_caption_of_a_thousand_words_is_cut_not_refused(models, compare):
    comparer = Comparer(models[compare], 1, "cpu")
    (_, (recall,), _) = comparer.compare(["a cat " * 500], ["the image contains a cat"])
    assert np.isfinite(recall)


def test_an_empty_description_is_asked_for_twice_and_gets_no_score(models, monkeypatch):
    asked: list[str] = []
    generate = Describer._generate
    def listen(self: Describer, images: np.ndarray, questions: list[str]) -> list[str]:
        asked.extend(questions)
        return generate(self, images, questions)

    monkeypatch.setattr(Describer, "_generate", listen)
    scores = scored(alignment(models, "silent"), 2)
    assert scores.values == {} and scores.info["caption"] == ["", ""]
    assert scores.failures[0] == "reward 'seen': the description was empty, asked twice"
    assert len(asked) == 4 and asked[2] == asked[0] + " Your answer must be short, but not empty."


def test_a_description_does_not_depend_on_its_batch(models):
    describer = Describer(models["llava"], 6, "float32", "cpu")
    pixels, question = images(3), ["What is going on?"]
    alone = [describer.ask(pixels[row : row + 1], question)[0] for row in range(3)]
    assert describer.ask(pixels, question * 3) == alone


def test_answers_of_questions_of_different_length_start_at_one_place(models):
    describer = Describer(models["llava"], 6, "float32", "cpu")
    pixels, questions = images(2), ["What?", "What animal is in this image, and how many are there?"]
    alone = [describer.ask(pixels[row : row + 1], [questions[row]])[0] for row in range(2)]
    assert describer.ask(pixels, questions) == alone


def test_satisfaction_is_the_share_of_answers_that_are_in_the_replies(models):
    config = RewardConfig("satisfaction", model=models["llava"], max_tokens=6)
    word = Describer(models["llava"], 6, "float32", "cpu").ask(images(1), ["Which animal?"])[0].split()[0]
    table = {"questions": ["Which animal?", "Which animal?"], "answers": [word.upper(), "no such word"]}
    scores = scored(config, 1, table)
    assert scores.values == {0: 0.5}
    assert scores.info["written"] in ([0.0], [1.0]) and word in scores.info["caption"][0]


def test_satisfaction_without_questions_says_what_is_missing(models):
    scores = scored(RewardConfig("satisfaction", model=models["llava"]), 1)
    assert "comes with no questions" in scores.failures[0] and "counting" in scores.failures[0]


def test_satisfaction_of_a_silent_model_is_masked(models):
    table = {"questions": ["How many?"], "answers": ["two"]}
    scores = scored(RewardConfig("satisfaction", model=models["silent"]), 1, table)
    assert scores.values == {} and "no answer to 'How many?', asked twice" in scores.failures[0]


def test_the_aesthetic_head_has_the_published_layers_and_no_activation(models, tmp_path):
    head = Head(16)
    assert [tuple(w.shape) for w in head.state_dict().values()][::2] == [
        (1024, 16), (128, 1024), (64, 128), (16, 64), (1, 16)
    ]
    assert list(head.state_dict())[::2] == [f"layers.{number}.weight" for number in (0, 2, 4, 6, 7)]
    save_file(head.state_dict(), tmp_path / "aesthetic.safetensors")
    torch.save(head.state_dict(), tmp_path / "aesthetic-model.pth")
    by_file = [
        list(scored(RewardConfig("aesthetic", model=models["clip"], head=str(path)), 2, size=(40, 64)).values.values())
        for path in (tmp_path, tmp_path / "aesthetic-model.pth")
    ]
    assert by_file[0] == by_file[1]
    doubled = head.eval()(2 * torch.ones(1, 16)) - head(torch.ones(1, 16))
    torch.testing.assert_close(doubled, head(torch.ones(1, 16)) - head(torch.zeros(1, 16)))  # affine


def test_a_head_of_other_layers_is_refused(models, tmp_path):
    save_file({"weight": torch.zeros(1, 16)}, tmp_path / "aesthetic.safetensors")
    with pytest.raises(RewardError, match=r"did not load as an aesthetic head \(layers.0 to layers.7"):
        RewardWorker("seen", RewardConfig("aesthetic", model=models["clip"], head=str(tmp_path)), "")


@pytest.mark.parametrize("kind", ["clipscore", "pickscore"])
def test_a_clip_reward_is_a_scaled_cosine(models, kind):
    scores = scored(RewardConfig(kind, model=models["clip"]), 2, size=(40, 64))
    assert len(scores.values) == 2 and all(abs(value) < 100 for value in scores.values.values())
    assert kind == "pickscore" or all(0 <= value <= 2.5 for value in scores.values.values())


@pytest.mark.parametrize("kind", ["alignment", "satisfaction", "aesthetic", "clipscore", "pickscore"])
def test_a_folder_without_the_model_is_named(kind, tmp_path):
    with pytest.raises(RewardError, match="did not load as"):
        RewardWorker("seen", RewardConfig(kind, model=str(tmp_path)), "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_precision_that_needs_a_gpu_is_refused_without_one(models):
    with pytest.raises(RewardError, match="needs a CUDA GPU"):
        Describer(models["llava"], 6, "4bit", "cpu")
    with pytest.raises(DeviceError, match='device = "cuda", but torch cannot compute on one'):
        Describer(models["llava"], 6, "float32", "cuda")


def test_models_are_looked_for_before_anything_starts(tmp_path):
    table = {"rewards": {"seen": {"kind": "alignment", "model": str(tmp_path / "none"), "compare": "no-such"}}}
    with pytest.raises(InputError) as caught:
        check(parse(table, [], "test"))
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("rewards.seen.model: there is no folder") and "rewards.seen.compare" in lines[1]
    assert locate("owner/model") == "owner/model" and locate(str(tmp_path)) == str(tmp_path)


def test_a_reward_computes_on_its_own_number_of_threads(models):
    before = torch.get_num_threads()
    source = "import torch\ndef reward(i, p, m): return [torch.get_num_threads()] * len(p), {}"
    chunk = Images((0,), ("a cat",), ({},), images(1))
    for threads in (1, 2):
        config = RewardConfig("function", path="/nowhere/mine.py", threads=threads)
        assert RewardWorker("mine", config, source).score(chunk).values == {0: threads}
    assert torch.get_num_threads() == before
