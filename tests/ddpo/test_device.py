"""Where a process computes, on a machine without a GPU: what it reserved, what it sees, and what it says of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ddpo import device
from ddpo.device import RESERVED, place
from ddpo.errors import DeviceError

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What earlier tests found is asked anew."""
    device._fault.cache_clear()
    device._note_idle_gpu.cache_clear()
    yield
    device._fault.cache_clear()


def reserve(monkeypatch: pytest.MonkeyPatch, gpus: str, driver: str = "", cuda: str | None = None) -> None:
    """A worker with so many GPUs, a driver and a torch for some CUDA."""
    monkeypatch.setenv(RESERVED, gpus)
    monkeypatch.setattr(device, "driver", lambda: driver)
    monkeypatch.setattr(torch.version, "cuda", cuda)


def test_on_no_cluster_auto_is_what_is_there_and_other_names_are_torchs(monkeypatch):
    monkeypatch.delenv(RESERVED, raising=False)
    assert [place(name).type for name in ("auto", "cpu", "meta")] == ["cpu", "cpu", "meta"]
    with pytest.raises(DeviceError, match=r'^device = "cuda", but torch cannot .*on the CPU, write device ='):
        place("cuda")


def test_without_a_reservation_a_worker_computes_on_the_cpu_or_is_told_to_reserve(monkeypatch):
    reserve(monkeypatch, "0")
    assert place("auto").type == "cpu"
    with pytest.raises(DeviceError, match="this worker reserves no GPU, and one that reserves none sees none"):
        place("cuda")


@pytest.mark.parametrize("name", ["auto", "cuda"])
@pytest.mark.parametrize("driver, cuda, says", [
    ("", None, r"CUDA enabled.*built without CUDA; NVIDIA driver: none found.*Install a torch with CUDA there"),
    ("", "13.0", r"for CUDA 13\.0; NVIDIA driver: none found.*Install NVIDIA's driver there, 580 or newer"),
    ("535.104.05", "13.0", r"driver: 535\.104\.05.*CUDA 13\.0 needs driver 580 or newer: update the driver"),
    ("580.65.06", "13.0", r"driver: 580\.65\.06.*See whether `nvidia-smi` works there"),
])
def test_a_reserved_gpu_that_torch_cannot_use_is_an_error_with_its_cause(monkeypatch, name, driver, cuda, says):
    reserve(monkeypatch, "0.5", driver, cuda)
    with pytest.raises(DeviceError, match=f"^this worker has reserved 0.5 GPU, but torch .*{says}.*write gpus = 0"):
        place(name)
    assert place("cpu").type == "cpu"


def test_a_memory_that_is_full_may_be_free_later(monkeypatch):
    def full(*shape: int, device: str) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB.")

    reserve(monkeypatch, "1", "580.65.06", "13.0")
    monkeypatch.setattr(torch, "ones", full)
    with pytest.raises(torch.OutOfMemoryError):
        place("auto")


def test_in_one_process_a_gpu_that_torch_cannot_use_is_told_of_once(monkeypatch, capsys):
    reserve(monkeypatch, "0", "535.104.05", "13.0")
    monkeypatch.delenv(RESERVED)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert place("auto").type == place("auto").type == "cpu"
    said = capsys.readouterr().err
    assert said.startswith("Note: torch sees no GPU here, so the CPU computes: ") and said.count("driver 580") == 1
