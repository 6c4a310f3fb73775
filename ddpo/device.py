"""Where a process computes: on the GPU that it reserved, or on the CPU; and what its numbers depend on there.

Consumes the config's word and what the cluster reserved for this process, produces a torch device, or an error that
says why the GPU cannot be used; waits for nothing. torch is imported where it is needed: a client needs none.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ddpo.errors import DeviceError
from ddpo.work import Failed

if TYPE_CHECKING:
    import torch

RESERVED = "DDPO_GPUS"  # environment of a worker on a cluster: the GPUs that it reserved; absent in any other process
Hardware = Mapping[str, str]  # what a process computes on, by the names in `hardware`
NEEDS = {"11": "450", "12": "525", "13": "580"}  # the oldest driver that runs a CUDA of this major version


def place(name: str) -> torch.device:
    """The device of "auto", "cpu" or "cuda"; "auto" is the GPU that the process reserved or, on no cluster, sees.

    Raises DeviceError where a GPU was reserved or asked for and torch cannot compute on it: with the CPU in its place a
    run would miss its deadlines, many times slower, and blame its workers for it.
    """
    import torch

    reserved = os.environ.get(RESERVED, "")
    if name not in ("auto", "cuda"):
        return torch.device(name)
    if name == "cuda" and reserved == "0":
        raise DeviceError(
            'device = "cuda", but this worker reserves no GPU, and one that reserves none sees none. Write gpus = 1, '
            'or a share such as gpus = 0.5, beside it; or device = "auto" or "cpu".'
        )
    if name == "auto" and not float(reserved or 0) and not torch.cuda.is_available():
        _note_idle_gpu()
        return torch.device("cpu")
    if fault := _fault():
        wants = f"this worker has reserved {reserved} GPU" if float(reserved or 0) else f'device = "{name}"'
        instead = "gpus = 0" if reserved else 'device = "cpu"'
        raise DeviceError(
            f"{wants}, but torch cannot compute on one on {socket.gethostname()}: {fault}. {_versions()}. On the CPU "
            f"it would take many times as long, so nothing was started. {_cure()} To compute on the CPU, "
            f"write {instead}."
        )
    return torch.device("cuda")


def on_gpu(device: torch.device) -> bool:
    """Whether it computes apart from the host, which has to wait for it to see a number; by whatever name torch calls
    it, so that a pretended one is treated as a real one (bench.gpu.pretend)."""
    return device.type not in ("cpu", "meta")


@functools.cache
def _fault() -> str:
    """Why torch cannot compute on the first GPU that it sees, by one small operation; "" where it can.

    What the memory is too full for may work once others have left, so that is raised as it is.
    """
    import torch

    try:
        torch.ones(1, device="cuda").add(1).item()
    except (AssertionError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    return ""


def out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory was too full for what was asked; drivers and libraries say so in words of their own."""
    import torch

    words = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


@contextmanager
def fitting(what: str, advice: str) -> Iterator[None]:
    """Say of a block for which a GPU's memory is too small that it is so; raises Failed, since the memory may be free
    later, or where nobody else shares it.

    what: "draw 8 images at once"
    """
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        import torch

        traceback.clear_frames(error.__traceback__)  # they hold the tensors that there was no room beside
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        said = str(error).strip().partition("\n")[0]
        raise Failed(f"a GPU has too little memory free to {what}: {said} {advice}") from None


def driver() -> str:
    """The version of NVIDIA's driver, asked without torch, which may be what cannot use it; "" where there is none."""
    with suppress(OSError):
        if version := re.search(r"\b\d{3,}\.\d+(\.\d+)?", Path("/proc/driver/nvidia/version").read_text()):
            return version[0]
    with suppress(OSError, AttributeError):  # Windows' Linux has no such file
        nvml, version = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.create_string_buffer(96)
        if nvml.nvmlInit_v2() == 0 and nvml.nvmlSystemGetDriverVersion(version, len(version)) == 0:
            return version.value.decode()
    return ""


def _versions() -> str:
    """What has to fit together."""
    import torch

    cuda = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = "" if seen is None else f'; CUDA_VISIBLE_DEVICES = "{seen}"'
    return f"torch is {torch.__version__}, {cuda}; NVIDIA driver: {driver() or 'none found'}{visible}"


def _cure() -> str:
    """What to do about it, by what is missing."""
    import torch

    cuda, version = torch.version.cuda, driver()
    if not cuda:
        return "Install a torch with CUDA there (`pip install torch` brings one, an index of CPU builds does not)."
    needed = NEEDS.get(cuda.partition(".")[0], "")
    if not version:
        return f"Install NVIDIA's driver there, {needed} or newer, or start the container with its GPUs (--gpus all)."
    if needed and int(version.partition(".")[0]) < int(needed):
        return (f"CUDA {cuda} needs driver {needed} or newer: update the driver, or install a torch for an older CUDA "
                "(pytorch.org has them).")
    return "See whether `nvidia-smi` works there, and whether this torch has kernels for that GPU."


@functools.cache
def _note_idle_gpu() -> None:
    """Say once that "auto" is the CPU though there is a driver: of a process on no cluster, which reserves nothing."""
    import torch

    if RESERVED not in os.environ and driver() and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        try:
            torch.cuda.init()
        except (AssertionError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            print(f"Note: torch sees no GPU here, so the CPU computes: {reason}. {_versions()}. {_cure()}",
                  file=sys.stderr, flush=True)


@functools.cache
def hardware(name: str) -> Hardware:
    """What the numbers of this process depend on besides config and seed, as `place(name)` puts it: the GPU's name and
    compute capability, driver, CUDA and cuDNN, or the CPU's vector instructions; and torch. Empty without torch."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    if name == "cpu" or not torch.cuda.is_available():
        return {"device": "cpu", "capability": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}
    return {
        "device": torch.cuda.get_device_name(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "driver": driver() or "unknown", "cuda": str(torch.version.cuda or torch.version.hip),
        "cudnn": str(torch.backends.cudnn.version()), "torch": torch.__version__,
    }


def shown(found: Hardware) -> str:
    """For a person."""
    rest = ", ".join(f"{name} {value}" for name, value in found.items() if name != "device")
    return f"{found['device']} ({rest})" if found else "the CPU, without torch"
