"""`make api`: every room is in it, everything public says what it is, and the pages are built."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pdoc
import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("ddpo", "actors", "rewards", "learner", "deploy")
DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@pytest.mark.parametrize("room", ROOMS)
def test_everything_public_says_what_it_is(room):
    paths = sorted((ROOT / room).rglob("*.py"))
    silent = [f"{path.relative_to(ROOT)}: {name}" for path in paths for name in undescribed(path.read_text())]
    assert paths and not silent


def test_something_that_does_not_is_found():
    code = '"""Module."""\nclass A:\n    """One."""\n    def b(self): ...\n    def _c(self): ...\ndef d(): ...\n'
    assert list(undescribed(code)) == ["A.b", "d"]


def undescribed(code: str) -> Iterator[str]:
    """Public modules, classes, functions and methods without a docstring; what a protocol asks for its class tells."""
    tree = ast.parse(code)
    if tree.body and not ast.get_docstring(tree):
        yield "the module"
    yield from _within(tree, "")


def _within(tree: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
    for part in tree.body:
        if isinstance(part, DEFINITION) and not part.name.startswith("_"):
            if not ast.get_docstring(part):
                yield prefix + part.name
            if isinstance(part, ast.ClassDef) and "Protocol" not in [ast.unparse(base) for base in part.bases]:
                yield from _within(part, f"{part.name}.")


def test_make_builds_pages_of_every_room():
    (line,) = re.findall(r"pdoc (.*)", (ROOT / "Makefile").read_text())
    assert line.split()[-len(ROOMS) - 1 :] == ["docs/api", *ROOMS]
    assert "docs/api/" in (ROOT / ".gitignore").read_text().splitlines()


def test_a_page_has_the_docstrings(tmp_path):
    pdoc.pdoc("ddpo.loop", "rewards.function", output_directory=tmp_path)
    page = (tmp_path / "ddpo" / "loop.html").read_text()
    assert "It knows verbs, not Ray" in page and "The pool that denoises." in page
    assert "The call of ddpo-pytorch and TRL." in (tmp_path / "rewards" / "function.html").read_text()
