"""Steps as CUDA graphs: one per padded size, all captured before the first request.

Launching a pass kernel by kernel takes the host longer than the device needs for a few hundred rows, so steps with
short prefills have graphs as well as those of decodes alone: the shortest those of decodes (see `single_rows`). Only a
prefill of thousands of rows goes without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from loraplex_server.engine.gpu_step_inputs import StepInputs, StepShape

Forward = Callable[[StepInputs], Tensor]
"""Launches one pass and returns its logits."""


class StepGraphs:
    """Captured graphs by shape; all share one pool of memory, since only one runs at a time."""

    def __init__(self) -> None:
        self._graphs: dict[StepShape, tuple[torch.cuda.CUDAGraph, StepInputs, Tensor]] = {}
        self._pool: Any = None

    def __len__(self) -> int:
        return len(self._graphs)

    def capture(self, inputs: StepInputs, forward: Forward) -> None:
        """Run once, so that every kernel is compiled, then capture."""
        forward(inputs)
        torch.cuda.current_stream().synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = forward(inputs)
        self._pool = self._pool or graph.pool()
        self._graphs[inputs.shape] = (graph, inputs, logits)

    def inputs(self, shape: StepShape) -> StepInputs:
        """Where a step of this shape is written before `replay`."""
        return self._graphs[shape][1]

    def replay(self, shape: StepShape) -> Tensor:
        """Logits of the shape's rows, padding included."""
        graph, _, logits = self._graphs[shape]
        graph.replay()
        return logits
