"""A GPU that computes nothing: which kernels a program starts, what it moves, and where its host waits.

Consumes a program that runs inside the mode, produces `Counts`; waits for nothing. The device is torch's "gpu", a
backend written in Python: tensors on it have a shape and a type and no data, those on the CPU are real. What a GPU
would refuse is refused: tensors of two devices, or of two types, in one operation. What comes back from it (`.cpu()`,
`.item()`) is all ones. An operation is what torch gives to a device in one call; attention is one, as on CUDA. Memory
is pinned by a mark, since a CPU build cannot pin any: an upload is waited for unless it is from there and non_blocking.

The backend cannot be taken away again and changes what torch calls an accelerator, so a process that uses it should do
nothing else. An error in a backward pass is printed and then lost, in a SystemError or the end of the process, since
C++ calls Python with the error still set.
"""

from __future__ import annotations

import functools
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten: Any = torch.ops.aten
NAME = "gpu"
ONE_TYPE = {  # what CUDA has no kernel for where the floating types differ
    aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, aten.convolution_backward, aten.native_layer_norm,
    aten.native_group_norm, aten.lerp, aten._scaled_dot_product_fused_attention_overrideable,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._unsafe_index, aten._unsafe_index_put}
COPIES = {aten._to_copy, aten.copy_, aten._foreach_copy_}
SCALARS = {aten._local_scalar_dense, aten.equal, aten.is_nonzero}
IN_HALF = ("linear", "conv2d", "matmul", "mm", "addmm", "bmm", "baddbmm",
           "_scaled_dot_product_fused_attention_overrideable")
IN_FP32 = ("layer_norm", "group_norm", "softmax.int", "mse_loss", "pow.Tensor_Scalar", "exp", "log")
RULES, ELSE = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
NO_KERNEL = {
    aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten.detach,
    aten.lift_fresh, aten._unsafe_view, aten._reshape_alias, aten.set_,
}


class Backend(backend_registration._DummyBackendModule):
    """What torch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Of autocast."""
        return [torch.float16, torch.bfloat16]


def _autocast() -> None:
    """CUDA's rules of autocast for what Stable Diffusion does: products in half, norms in fp32."""
    key: Any = torch._C.DispatchKey.__members__["AutocastPrivateUse1"]

    def cast(kernel: Any, dtype: torch.dtype | None, *args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            wanted = dtype or torch.get_autocast_dtype(NAME)
            return kernel(*tree_map_only(Tensor, lambda tensor: _as(tensor, wanted), args), **kwargs)

    ELSE.fallback(torch.library.fallthrough_kernel, key.name)
    for names, dtype in ((IN_HALF, None), (IN_FP32, torch.float32)):
        for name in names:
            kernel = getattr(aten, name.partition(".")[0])
            RULES.impl(name, functools.partial(cast, kernel, dtype), key.name)


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() and tensor.device.type == NAME else tensor


@functools.cache
def device() -> torch.device:
    """The pretended GPU, for the rest of the process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    _autocast()
    return torch.device(NAME, 0)


@dataclass
class Counts:
    """operations: on the device, by name, without views; moved: bytes that they read and write
    casts: changes of type among them; uploads, downloads: copies to the device and from it, in bytes each
    waits: where the host waits for the device, by reason; blocking uploads and all downloads are among them"""

    operations: Counter[str] = field(default_factory=Counter)
    moved: int = 0
    casts: int = 0
    uploads: list[int] = field(default_factory=list)
    downloads: list[int] = field(default_factory=list)
    waits: Counter[str] = field(default_factory=Counter)

    def __sub__(self, other: Counts) -> Counts:
        """What is in these beyond the others."""
        return Counts(
            self.operations - other.operations, self.moved - other.moved, self.casts - other.casts,
            self.uploads[len(other.uploads):], self.downloads[len(other.downloads):], self.waits - other.waits,
        )


class PretendedGpu(TorchDispatchMode):
    """Runs what touches the device without data, and counts it; all else runs on the CPU as ever."""

    def __init__(self) -> None:
        super().__init__()
        self.device, self.counts = device(), Counts()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    @contextmanager
    def counting(self) -> Iterator[Counts]:
        """What is counted in the block."""
        outer, self.counts = self.counts, Counts()
        try:
            yield self.counts
        finally:
            self.counts = outer

    def __enter__(self) -> PretendedGpu:
        self.lifting = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=) makes a copy that is seen
        self.threads = torch.autograd.set_multithreading_enabled(False)
        self.attention, torch.nn.functional.scaled_dot_product_attention = _attention()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.nn.functional.scaled_dot_product_attention = self.attention
        self.threads.__exit__(None, None, None)
        torch._C._set_only_lift_cpu_tensors(self.lifting)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation."""
        try:
            return self._operation(func, args, kwargs or {})
        except Exception:
            if torch._C._current_graph_task_id() != -1:  # in a backward pass, where nobody will see it
                traceback.print_exc()
            raise

    def _operation(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = func.overloadpacket
        if name is torch.ops.prim.device:
            return args[0].fake_device if isinstance(args[0], FakeTensor) else func(*args)
        if name is aten.is_pinned:
            return hasattr(args[0], "pinned")
        if name is aten._pin_memory:
            copy = args[0].clone()
            copy.pinned = True
            return copy
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there, target = [tensor for tensor in tensors if isinstance(tensor, FakeTensor)], kwargs.get("device")
        if not there and (target is None or torch.device(target).type != NAME):
            return func(*args, **kwargs)
        if name in SCALARS:
            self.counts.waits[name.__name__] += 1
            return True if there[0].dtype == torch.bool else 1.0 if there[0].is_floating_point() else 1
        if name in COPIES and self._from_device(name, args, target):
            return self._download(name, there[0], args, kwargs)
        if name in INDEXING:
            args = (args[0], [part for index in args[1] for part in self._index(index)], *args[2:])
        elif name is aten.nonzero:
            self.counts.waits["nonzero"] += 1
            return there[0].new_empty(there[0].numel(), there[0].dim(), dtype=torch.int64)
        self._check(name, tensors, there)
        if name in COPIES:
            self._count_copies(name, args, kwargs)
        with self.fake:
            if name is aten._to_copy and not there:  # torch would compute with the numbers, which is not to be had
                dtype = kwargs.get("dtype") or args[0].dtype
                return torch.empty_strided(args[0].shape, args[0].stride(), dtype=dtype, device=self.device)
            result = func(*args, **kwargs)
        self.fake.fake_tensor_converter.tensor_memo.clear()  # a module's `.to` swaps only what nothing refers to
        if not func.is_view and name not in NO_KERNEL:
            self._count(name, tensors, result)
        return result

    def _from_device(self, name: Any, args: Any, target: Any) -> bool:
        if name is aten._to_copy:
            return isinstance(args[0], FakeTensor) and target is not None and torch.device(target).type == "cpu"
        return name is aten.copy_ and not isinstance(args[0], FakeTensor)

    def _download(self, name: Any, source: Tensor, args: Any, kwargs: Any) -> Tensor:
        self.counts.downloads.append(source.numel() * source.element_size())
        self.counts.waits["download"] += 1
        if name is aten.copy_:
            return args[0].fill_(1)
        return torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype)

    def _index(self, index: Tensor | None) -> list[Tensor | None]:
        """As numbers on the device, as which a mask gets there, and what is on the CPU; a mask there chooses all."""
        is_there = isinstance(index, FakeTensor)
        if index is None or (is_there and index.dtype != torch.bool):
            return [index]
        if is_there:
            self.counts.waits["boolean mask"] += 1
        else:
            self._upload(index, False)
        parts, shape = 1, index.shape
        if index.dtype == torch.bool:
            parts, shape = index.dim(), torch.Size([index.numel() if is_there else len(index.nonzero())])
        with self.fake:
            return [torch.empty(shape, dtype=torch.int64, device=self.device) for _ in range(parts)]

    def _check(self, name: Any, tensors: Sequence[Tensor], there: Sequence[Tensor]) -> None:
        """Raise RuntimeError for what CUDA refuses and torch's shapes alone do not: two floating types, or, where
        pointers are handed over, a number on the CPU."""
        kinds = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
        if name in ONE_TYPE and len(kinds) > 1:
            raise RuntimeError(f"{name} of {sorted(str(kind) for kind in kinds)} in one operation")
        if "fused_adam" in name.__name__ and len(there) < len(tensors):
            raise RuntimeError(f"{name} with tensors on the CPU")

    def _count_copies(self, name: Any, args: Any, kwargs: Any) -> None:
        """Uploads among them, and changes of type on the device."""
        non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        if name is aten._foreach_copy_:
            pairs = list(zip(args[0], args[1], strict=True))
        else:
            pairs = [args[:2]] if name is aten.copy_ else [(None, args[0])]
        for target, source in pairs:
            dtype = kwargs.get("dtype") or source.dtype if target is None else target.dtype
            if not isinstance(source, FakeTensor):
                if source.device.type == "cpu":
                    self._upload(source, non_blocking)
            elif dtype != source.dtype:
                self.counts.casts += 1

    def _upload(self, source: Tensor, non_blocking: bool) -> None:
        if not source.numel():
            return
        self.counts.uploads.append(source.numel() * source.element_size())
        if not (non_blocking and hasattr(source, "pinned")):
            self.counts.waits["blocking upload"] += 1

    def _count(self, name: Any, tensors: list[Tensor], result: Any) -> None:
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, FakeTensor)]
        self.counts.operations[name.__name__] += 1
        self.counts.moved += sum(_size(tensor) for tensor in [*tensors, *results])


def _size(tensor: Tensor) -> int:
    """Bytes that lie in memory: rows that are repeated without a copy count once."""
    numbers = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numbers *= size if stride else 1
    return numbers * tensor.element_size()


def _attention() -> tuple[Any, Any]:
    """torch's own, and one in a single kernel with a single one backward, as on CUDA."""
    kernel: Any = aten._scaled_dot_product_fused_attention_overrideable
    own: Any = torch.nn.functional.scaled_dot_product_attention

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, dropout_p: float = 0.0,
                  is_causal: bool = False, scale: float | None = None, **options: Any) -> Tensor:
        if q.device.type != NAME:
            return own(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, **options)
        return kernel(q, k, v, attn_mask, dropout_p, is_causal, scale=scale)[0]

    return own, attention
