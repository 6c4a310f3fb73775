"""How a GPU computes: TF32, repeatable kernels, attention. One place for every process; a CPU is left as it is.

Consumes [gpu] of the run file, changes torch's settings for the process; waits for nothing. Each of them moves the last
digits, so they are part of the numbers. cuBLAS repeats itself only with CUBLAS_WORKSPACE_CONFIG in the environment from
the start (deploy.cluster sets it for GPU workers).
"""

from __future__ import annotations

from typing import Any

import torch

from ddpo.config import GpuConfig


def set_backends(config: GpuConfig) -> None:
    """Set what this process computes with on the GPU that it sees, if any.

    tf32 False makes fp32 exact: torch's own default rounds the inputs of fp32 convolutions to 10 bits, as coarse as
    float16, and leaves matrix products exact. Operations without a repeatable kernel warn and go on.
    """
    if not torch.cuda.is_available():
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
    torch.backends.cudnn.benchmark = False  # it would choose kernels by time, hence by chance
    torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
    settings: Any = torch.utils.deterministic
    settings.fill_uninitialized_memory = False  # a search for bugs, at the price of a pass over memory
    chosen = config.attention
    torch.backends.cuda.enable_flash_sdp(chosen in ("auto", "flash"))
    torch.backends.cuda.enable_mem_efficient_sdp(chosen in ("auto", "efficient"))
    torch.backends.cuda.enable_cudnn_sdp(chosen == "cudnn")
    torch.backends.cuda.enable_math_sdp(True)  # for shapes that the chosen one does not take
