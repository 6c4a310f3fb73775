"""A GPU's memory that is too small, as torch says it: what the run says, and what it advises."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch

from actors.sampler import Sampler
from ddpo.device import fitting
from ddpo.work import Failed
from learner.learner import Learner

TORCH_SAYS = "CUDA out of memory. Tried to allocate 9.50 GiB. GPU 0 has a total capacity of 22.18 GiB.\nof which more"


def full(*given: Any, **named: Any) -> None:
    raise torch.OutOfMemoryError(TORCH_SAYS)


@pytest.mark.parametrize(("part", "method", "says", "advice"), [
    (Sampler, "_chain", "to draw 2 images at once", "a smaller actors.batch"),  # of the grid
    (Learner, "_minibatch", "to learn from 4 pairs at once", "a smaller learner.micro_batch"),
])
def test_it_is_told_as_what_it_is_with_what_to_do(train, monkeypatch, part, method, says, advice):
    monkeypatch.setattr(part, method, full)
    answer = train()
    assert answer.code == 1 and f"a GPU has too little memory free {says}: CUDA out of memory. Tried to" in answer.err
    assert "of which more" not in answer.err and advice in answer.err


def test_what_the_block_had_made_is_given_back():
    made = list[weakref.ref[torch.Tensor]]()

    def block() -> None:
        large = torch.ones(3)
        made.append(weakref.ref(large))
        full()

    with pytest.raises(Failed, match="to do it: CUDA out of memory") as told, fitting("do it", "Do less."):
        block()
    assert told.value and made[0]() is None


def test_another_error_is_left_as_it_is():
    with pytest.raises(RuntimeError, match="shapes differ"), fitting("do it", "Do less."):
        raise RuntimeError("shapes differ")
    with pytest.raises(Failed, match="CUBLAS_STATUS_ALLOC_FAILED"), fitting("do it", "Do less."):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
