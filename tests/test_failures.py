"""docs/failures.md quotes messages of the program: they are still in it, word for word."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("ddpo", "actors", "rewards", "learner", "deploy")
HOLE = "…"  # stands for a value, in the page as here


def quoted() -> list[str]:
    """The first column of the page's tables, but of the last one, where others speak."""
    ours = (ROOT / "docs" / "failures.md").read_text().partition("## What others say")[0]
    return re.findall(r"^\| `([^`]+)` \|", ours, re.MULTILINE)


def said(node: ast.AST) -> str:
    """A text of the program, with a hole for every value."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """All texts of the program but those that stand alone, which are docstrings."""
    trees = [ast.parse(path.read_text()) for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    alone = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    return [text for node in nodes if id(node) not in alone and (text := said(node))]


@pytest.mark.parametrize("message", quoted())
def test_a_quoted_message_is_in_the_program(message, texts):
    assert any(message in text for text in texts), f"nothing says {message!r} any more; mend docs/failures.md"


def test_the_page_is_read_and_a_message_that_nobody_says_is_found(texts):
    assert len(quoted()) > 60
    assert not any("the moon is in the way" in text for text in texts)
    assert all(len(message.replace(HOLE, "").strip()) > 6 for message in quoted())
