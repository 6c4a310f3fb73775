"""Moments between two changes of files, to be killed at or to look at."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest


class Killed(BaseException):
    """The process is no more: nothing that it would clean up is cleaned up."""


def before_changes(patch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Call `act` before any file or folder is renamed or removed, other than by itself."""
    acting: list[bool] = []

    def hooked(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any, **options: Any) -> Any:
            if not acting:
                acting.append(True)
                try:
                    act()
                finally:
                    acting.clear()
            return change(*arguments, **options)

        return changed

    for name in ("rename", "replace", "unlink", "remove", "rmdir"):
        patch.setattr(os, name, hooked(getattr(os, name)))


def kill_at(patch: pytest.MonkeyPatch, change: int) -> None:
    """Raise Killed at this change of files, counted from 0, and at all that follow."""
    left = iter(range(change))

    def act() -> None:
        if next(left, None) is None:
            raise Killed

    before_changes(patch, act)
