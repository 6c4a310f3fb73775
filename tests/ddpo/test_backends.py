"""How a GPU computes: what [gpu] sets, and which passes are recorded as graphs. Neither needs a GPU to be decided."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ddpo.backends import set_backends
from ddpo.config import GpuConfig
from ddpo.graphs import MOST, Graphs

SDP = torch.backends.cuda


def settings() -> dict[str, bool]:
    """As torch has them now."""
    return {
        "matmul": SDP.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32,
        "deterministic": torch.are_deterministic_algorithms_enabled(), "flash": SDP.flash_sdp_enabled(),
        "efficient": SDP.mem_efficient_sdp_enabled(), "cudnn attention": SDP.cudnn_sdp_enabled(),
        "math": SDP.math_sdp_enabled(), "benchmark": torch.backends.cudnn.benchmark,
    }


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch says that there is one; what it is set to is set back."""
    before = settings()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    yield
    SDP.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before["matmul"], before["cudnn"]
    torch.use_deterministic_algorithms(before["deterministic"])
    torch.utils.deterministic.fill_uninitialized_memory = fill
    SDP.enable_flash_sdp(before["flash"])
    SDP.enable_mem_efficient_sdp(before["efficient"])
    SDP.enable_cudnn_sdp(before["cudnn attention"])
    SDP.enable_math_sdp(before["math"])


def test_a_cpu_is_left_as_it_is():
    before = settings()
    set_backends(GpuConfig(tf32=not before["matmul"], attention="cudnn"))
    assert settings() == before


@pytest.mark.parametrize("attention", ["auto", "flash", "efficient", "cudnn"])
def test_everything_follows_from_the_run_file(on_a_gpu, attention):
    set_backends(GpuConfig(attention=attention))
    assert settings() == {
        "matmul": False, "cudnn": False, "deterministic": True, "benchmark": False, "math": True,
        "flash": attention in ("auto", "flash"), "efficient": attention in ("auto", "efficient"),
        "cudnn attention": attention == "cudnn",
    }
    set_backends(GpuConfig(tf32=True, deterministic=False))
    assert settings()["matmul"] and settings()["cudnn"] and not settings()["deterministic"]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    """Graphs of a network that doubles; a recorded pass triples, so that one is told from the other."""
    found = Graphs(lambda x: 2 * x, [torch.ones(1)])
    for name in ("_record_both", "_record_forward"):
        monkeypatch.setattr(found, name, lambda inputs: lambda x: 3 * x)
    return found


def given(rows: int) -> torch.Tensor:
    return torch.ones(rows)


def test_a_shape_is_recorded_once_and_others_beyond_the_most_are_launched_kernel_by_kernel(graphs):
    with torch.no_grad():
        for rows in range(1, MOST + 1):
            assert float(graphs(given(rows)).mean()) == float(graphs(given(rows)).mean()) == 3
        assert len(graphs.recorded) == MOST
        assert float(graphs(given(MOST + 1)).mean()) == 2
        assert float(graphs(given(1), variant="base").mean()) == 2  # another recording, and none is left


def test_of_passes_with_gradients_one_shape_is_recorded_beside_those_without(graphs):
    with torch.no_grad():
        for rows in range(1, MOST + 1):
            graphs(given(rows))
    assert float(graphs(given(8)).mean()) == 3 and float(graphs(given(7)).mean()) == 2
    without = Graphs(lambda x: 2 * x)
    assert float(without(given(8)).mean()) == 2 and not without.recorded
