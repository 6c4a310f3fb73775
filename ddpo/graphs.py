"""CUDA graphs: a network's kernels are recorded once for every shape and then launched together.

One by one, a forward pass of Stable Diffusion is over a thousand launches from Python, which takes longer than the GPU
needs to compute them (docs/benchmarks.md). A graph launches the very same kernels, so that its numbers are the same.
Consumes a network and tensors, produces what the network makes of them; waits for the GPU where it records.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

MOST = 6  # shapes that are recorded, each with memory of its own; others are launched kernel by kernel

Network = Callable[..., Tensor]


class Graphs:
    """A network under graphs, one for each shape of its inputs, with gradients and without.

    weights: what the network computes with and what gets gradients; they must stay where they are in memory. A call's
             gradient may be overwritten by the next call's, so take it before that (ddpo.trainable does).
    """

    def __init__(self, network: Network, weights: Sequence[Tensor] = ()) -> None:
        self.network, self.weights = network, tuple(weights)
        self.recorded: dict[Hashable, Network] = {}

    def __call__(self, *inputs: Tensor, variant: Hashable = None) -> Tensor:
        """What the network gives; `variant` tells apart states of it that give other kernels for the same shapes."""
        learning = torch.is_grad_enabled() and bool(self.weights)
        key = (learning, variant, *((tensor.shape, tensor.dtype) for tensor in inputs))
        if key not in self.recorded:
            if len(self.recorded) >= MOST:
                return self.network(*inputs)
            self.recorded[key] = self._record_both(inputs) if learning else self._record_forward(inputs)
        return self.recorded[key](*inputs)

    def _record_both(self, inputs: Sequence[Tensor]) -> Network:
        """Forward and backward, by torch's own tool: the weights go in as inputs, which is how they get gradients."""
        samples = (*(tensor.detach().clone() for tensor in inputs), *self.weights)
        count = len(inputs)
        graphed = torch.cuda.make_graphed_callables(
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
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self.network(*given)

        def replay(*now: Tensor) -> Tensor:
            for place, tensor in zip(given, now, strict=True):
                place.copy_(tensor)
            graph.replay()
            return output.clone()

        return replay
