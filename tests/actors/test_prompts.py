"""Prompt sources."""

from __future__ import annotations

import pytest

from actors.prompts import source
from ddpo.config import PromptsConfig
from ddpo.errors import InputError
from ddpo.types import Prompt


def test_animals_are_the_papers_45():
    animals = [prompt.text for prompt in source(PromptsConfig())]
    assert len(animals) == len(set(animals)) == 45
    assert animals[0] == "cat" and animals[-1] == "kangaroo" and "lion" in animals


def test_imagenets_animals_are_its_first_398_labels():
    labels = [prompt.text for prompt in source(PromptsConfig("imagenet_animals"))]
    assert len(labels) == len(set(labels)) == 398
    assert labels[0] == "tench, Tinca tinca" and labels[397] == "puffer, pufferfish, blowfish, globefish"
    assert labels[134] == "crane" and labels[296] == "ice bear, polar bear, Ursus Maritimus, Thalarctos maritimus"


def test_a_file_gives_its_lines(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\n  a dog  \n")
    assert [prompt.text for prompt in source(PromptsConfig("from_file", [], str(path)))] == ["a cat", "a dog"]


def test_a_jsonl_file_gives_texts_and_metadata(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "two cats", "metadata": {"answers": ["two"]}}\n\n{"prompt": "a dog"}\n')
    assert source(PromptsConfig("from_file", path=str(path))) == [
        Prompt("two cats", {"answers": ["two"]}), Prompt("a dog", {})
    ]


@pytest.mark.parametrize(
    "line", ["a cat", '{"text": "a cat"}', '{"prompt": 3}', '{"prompt": "a", "metadata": []}', "[1]"]
)
def test_a_line_of_jsonl_that_is_no_prompt_is_named(tmp_path, line):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a dog"}\n' + line)
    with pytest.raises(InputError, match="line 2 is not"):
        source(PromptsConfig("from_file", path=str(path)))


def test_scenes_are_every_noun_in_every_activity_with_its_article():
    scenes = [prompt.text for prompt in source(PromptsConfig("nouns_activities"))]
    assert len(scenes) == len(set(scenes)) == 135
    assert scenes[:3] == ["a cat washing dishes", "a cat playing chess", "a cat riding a bike"]
    assert "an ant riding a bike" in scenes
    other = PromptsConfig("nouns_activities", nouns=["unicorn", "hour"], activities=["asleep"])
    assert [prompt.text for prompt in source(other)] == ["a unicorn asleep", "an hour asleep"]


def test_counting_asks_how_many_and_which():
    prompts = source(PromptsConfig("counting", nouns=["wolf", "mouse"], low=2, high=3))
    assert [prompt.text for prompt in prompts] == ["two wolves", "three wolves", "two mice", "three mice"]
    assert prompts[3].metadata == {
        "questions": ["How many mice are there in this image?", "What animal is in this image?"],
        "answers": ["three", "mouse"],
    }


@pytest.mark.parametrize("content", ["", "\n  \n"])
def test_an_empty_file_is_refused(tmp_path, content):
    path = tmp_path / "prompts.txt"
    path.write_text(content)
    with pytest.raises(InputError, match="holds no prompt"):
        source(PromptsConfig("from_file", [], str(path)))
