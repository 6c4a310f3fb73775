"""CUDA graphs: a network's kernels are recorded once for every shape and then launched together.

One by one, a forward pass of Stable Diffusion is about a thousand launches from Python; on an H200 they were a fifth of
its time (docs/benchmarks.md). A graph launches the very same kernels, so that its numbers are the same.
Consumes a network and tensors, produces what the network makes of them; waits for the GPU where it records.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

MOST = 4  # shapes whose forward pass is recorded; of those with gradients one, since it keeps its activations

Network = Callable[..., Tensor]


class Graphs:
    """A network under graphs, one for each shape of its inputs, with gradients and without.

    weights: what gets gradients, and stays where it is in memory; with none, no backward pass is recorded. A call's
             gradients are overwritten by the next call's, so take them before that (ddpo.trainable does).
    """

    def __init__(self, network: Network, weights: Sequence[Tensor] = ()) -> None:
        self.network, self.weights = network, tuple(weights)
        self.recorded: dict[tuple[Hashable, ...], Network] = {}
        self.memory: Any = None  # of all forward passes together: none of them needs it beyond its own time

    def __call__(self, *inputs: Tensor, variant: Hashable = None) -> Tensor:
        """What the network gives; `variant` tells apart states of it that give other kernels for the same shapes."""
        learning = torch.is_grad_enabled()
        key = (learning, variant, *((tensor.shape, tensor.dtype) for tensor in inputs))
        if key not in self.recorded:
            alike = sum(other[0] == learning for other in self.recorded)
            if (learning and not self.weights) or alike >= (1 if learning else MOST):
                return self.network(*inputs)
            self.recorded[key] = self._record_both(inputs) if learning else self._record_forward(inputs)
            torch.cuda.empty_cache()  # what the passes before the recording took: the graph has memory of its own
        return self.recorded[key](*inputs)

    def _record_both(self, inputs: Sequence[Tensor]) -> Network:
        """Forward and backward, by torch's own tool: the weights go in as inputs, which is how they get gradients."""
        samples = (*(tensor.detach().clone() for tensor in inputs), *self.weights)
        count = len(inputs)
        graphed: Any = torch.cuda.make_graphed_callables(
            lambda *given: self.network(*given[:count]), samples, allow_unused_input=True
        )
        return lambda *given: graphed(*given, *self.weights)

    @torch.no_grad()
    def _record_forward(self, inputs: Sequence[Tensor]) -> Network:
        given = [tensor.detach().clone() for tensor in inputs]
        # Once outside of the recording, where libraries set themselves up.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.network(*given)
        torch.cuda.current_stream().wait_stream(side)
        # Recorded: reads `given`, writes `output`.
        self.memory = self.memory or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.memory):
            output = self.network(*given)

        def replay(*now: Tensor) -> Tensor:
            for place, tensor in zip(given, now, strict=True):
                place.copy_(tensor)
            graph.replay()
            return output.clone()

        return replay
