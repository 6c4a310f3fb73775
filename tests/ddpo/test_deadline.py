"""Blocks that take too long."""

from __future__ import annotations

import time

import pytest

from ddpo.deadline import deadline, stacks_after
from ddpo.errors import DeadlineError


def dawdle(seconds: float) -> None:
    time.sleep(seconds)


def test_a_block_that_takes_too_long_is_interrupted():
    with pytest.raises(DeadlineError, match=r"the nap took more than 0\.1 s"), deadline(0.1, "the nap"):
        dawdle(5)


def test_where_a_block_hangs_is_written_and_a_quick_one_is_silent(capfd):
    with stacks_after(0.1):
        dawdle(0.4)
    assert "in dawdle" in capfd.readouterr().err
    with stacks_after(0.1):
        dawdle(0.0)
    dawdle(0.3)
    assert capfd.readouterr().err == ""


def test_a_block_that_moves_on_may_take_longer(capfd):
    with stacks_after(0.3) as anew:
        for _ in range(4):
            dawdle(0.15)
            anew()
        assert capfd.readouterr().err == ""
        dawdle(0.5)
    assert "in dawdle" in capfd.readouterr().err
