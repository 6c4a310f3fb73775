"""Faults of a GPU without one: the real sizes through sampler and learner, on a device that computes nothing.

In a process of its own: the device cannot be taken away again, and an error in a backward pass may end the process.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import pretended
import pytest

HALF = "policy.dtype=float16"
CASES = {
    "SD 1.5": ("sd15", HALF),
    "SD 1.5, bfloat16, KL": ("sd15", "policy.dtype=bfloat16", "learner.kl=0.1"),
    "SD 2.1, bfloat16, truncated": ("sd21", "policy.dtype=bfloat16", "learner.correction=truncate", "lag=1"),
    "SDXL, checkpointing": ("sdxl", HALF, "learner.gradient_checkpointing=true"),
}
KERNELS = 988  # that SD 1.5's UNet starts in one call, 256 of them for LoRA
TEXT_UPLOADS = {"sd15": 5, "sd21": 5, "sdxl": 10}  # of three prompts' numbers, and of the finished rows


@pytest.fixture(scope="module")
def ask() -> Iterator[Callable[..., Any]]:
    """ask(function, ...): its answer from the process with the pretended GPU."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        submit = partial(process.submit, pretended.answer)
        yield lambda *given, **options: submit(*given, **options).result(timeout=600)


@pytest.mark.parametrize("case", CASES)
def test_a_micro_batch_uploads_pairs_and_states_and_never_waits(ask, case):
    each, rest = ask(pretended.learned, *CASES[case], parts=2 if case == "SD 1.5" else 1)
    states = {"sd15": 64, "sd21": 96, "sdxl": 128}[CASES[case][0]] ** 2 * 4 * 4 * pretended.IMAGES
    for part in each:
        assert part.uploads == [16 * pretended.IMAGES, states, states]
        assert not part.waits and not part.downloads
    assert rest.downloads == [5 * 4 * pretended.IMAGES * len(each)]  # the figures of all micro-batches together
    assert rest.waits == {"download": 1, "_local_scalar_dense": 1} and not rest.uploads  # and the gradient's norm


@pytest.mark.parametrize("case", [case for case in CASES if "KL" not in case])
def test_a_step_of_the_chain_uploads_nothing_and_never_waits(ask, case):
    found = ask(pretended.sampled, *CASES[case])
    assert found["step"].operations and not found["step"].uploads and not found["step"].waits
    assert found["decode"].waits == {"download": 2} and not found["decode"].uploads
    assert len(found["text"].uploads) == found["text"].waits["blocking upload"] == TEXT_UPLOADS[CASES[case][0]]


def test_lora_adds_two_kernels_a_layer_and_no_change_of_type(ask):
    with_lora, without, casts_within, layers = ask(pretended.forwards, *CASES["SD 1.5"])
    assert layers == 128 and with_lora.operations.total() - without.operations.total() == 2 * layers
    assert with_lora.casts == without.casts and casts_within == 0
    assert with_lora.operations.total() <= 1.02 * KERNELS


@pytest.mark.parametrize("words", [
    ("learner.ema=0.99", "learner.kl=0.1", "advantage.kl=0.1"), ("learner.algorithm=rwr",),
    ("learner.correction=decoupled", "lag=1"), ("learner.old_log_probs=recompute", "policy.guidance=1"),
    ("policy.train=full",),
])
def test_a_run_of_two_steps_goes_through_whole_and_over_a_restart(ask, words):
    assert ask(pretended.trained, "tiny", HALF, "policy.steps=2", *words) == [1, 2]


@pytest.mark.parametrize("words", [(), ("learner.algorithm=rwr",), ("policy.train=full",)])
def test_other_ways_to_learn_do_not_wait_either(ask, words):
    (part,), _ = ask(pretended.learned, "tiny", HALF, *words)
    assert not part.waits and len(part.uploads) == 3


def test_log_probs_are_recomputed_without_waiting(ask):
    again = ask(pretended.asked_again, "tiny", HALF)
    assert not again.waits and len(again.uploads) == 3


@pytest.mark.parametrize(("fault", "reason"), [
    ("a number is asked for", "_local_scalar_dense"), ("a condition on the device", "_local_scalar_dense"),
    ("a mask chooses", "boolean mask"), ("nonzero", "nonzero"), ("a download", "download"),
    ("a small upload", "blocking upload"), ("an index on the CPU", "blocking upload"),
])
def test_a_new_wait_of_the_learner_is_counted(ask, fault, reason):
    (part,), _ = ask(pretended.learned, "tiny", HALF, fault=fault)
    assert part.waits == {reason: 1}


def test_a_steps_kl_to_the_base_is_waited_for_once_a_chunk(ask):
    kl = ask(pretended.sampled, "tiny", HALF)["kl"]
    assert kl.operations and not kl.uploads and kl.waits == {"download": 1}


@pytest.mark.parametrize("fault", ["uploads are waited for", "uploads from pageable memory"])
def test_an_upload_that_is_waited_for_is_counted(ask, fault):
    (part,), _ = ask(pretended.learned, "tiny", HALF, fault=fault)
    assert part.waits == {"blocking upload": 3}


@pytest.mark.parametrize(("fault", "reason"), [
    ("steps are uploaded", "blocking upload"), ("steps are asked for", "_local_scalar_dense"),
])
def test_a_new_wait_of_the_chain_is_counted(ask, fault, reason):
    assert ask(pretended.sampled, "tiny", HALF, fault=fault)["step"].waits == {reason: 1}


@pytest.mark.parametrize(("fault", "message"), [
    ("a mean on the CPU", "same device"), ("the schedule on the CPU", "same device"),
    ("LoRA in fp32", r"aten.mm of \['torch.float16', 'torch.float32'\]"),
])
def test_devices_and_types_that_do_not_go_together_are_errors(ask, fault, message):
    with pytest.raises(RuntimeError, match=message):
        ask(pretended.learned, "tiny", HALF, fault=fault)


def test_lora_as_peft_computes_it_is_counted(ask):
    with_lora, without, casts_within, layers = ask(pretended.forwards, "tiny", HALF, fault="peft's LoRA in fp32")
    assert with_lora.operations.total() - without.operations.total() > 4 * layers
    assert casts_within >= 2 * layers


def test_counts_of_updates_on_the_cpu_are_refused(ask):
    with pytest.raises(RuntimeError, match="_fused_adamw_ with tensors on the CPU"):
        ask(pretended.learned, "tiny", HALF, fault="the count of updates on the CPU")
