"""Prompt sources."""

from __future__ import annotations

import pytest

from actors.prompts import source
from ddpo.config import PromptsConfig
from ddpo.errors import InputError


def test_animals_are_the_papers_45():
    animals = source(PromptsConfig())
    assert len(animals) == len(set(animals)) == 45
    assert animals[0] == "cat" and animals[-1] == "kangaroo" and "lion" in animals


def test_a_file_gives_its_lines(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\n  a dog  \n")
    assert source(PromptsConfig("file", [], str(path))) == ["a cat", "a dog"]


@pytest.mark.parametrize("content", ["", "\n  \n"])
def test_an_empty_file_is_refused(tmp_path, content):
    path = tmp_path / "prompts.txt"
    path.write_text(content)
    with pytest.raises(InputError, match="holds no prompt"):
        source(PromptsConfig("file", [], str(path)))
