"""What an engine needs of its device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from loraplex_adapters.compatibility import LoraWeights
from loraplex_server.adapter_image import ElementType
from loraplex_server.engine.adapter_arena import AdapterMemory, PackedAdapter
from loraplex_server.engine.config import ResidencySizes
from loraplex_server.engine.host_cache import HostCache
from loraplex_server.engine.prefill_budget import PaddedRows, not_padded
from loraplex_server.engine.scheduled_batch import SampledToken, ScheduledBatch
from loraplex_server.model.config import DecoderConfig
from loraplex_server.model.numerics import ResolvedQuantization

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) while an engine starts."""


class Step(Protocol):
    """A step that was launched."""

    def tokens(self) -> list[SampledToken]:
        """Wait for it; tokens of the decodes, then of the prefills with a last chunk."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether `tokens` would return at once."""
        ...

    @property
    def device_seconds(self) -> float:
        """How long the device worked on it; known once `tokens` returned."""
        ...

    @property
    def idle_seconds(self) -> float | None:
        """What the device waited between the step ahead and this one, launched while that was in flight; else None."""
        ...


class StepRunner(Protocol):
    """Carries out scheduled batches."""

    overlaps: bool  # a step may be launched before the tokens of the one ahead are taken

    def launch(self, batch: ScheduledBatch, *, is_continuation: bool) -> Step:
        """Begin a step. `is_continuation`: the one ahead is still in flight."""
        ...

    def warm_up(self, on_progress: Callable[[int, int], None]) -> None:
        """Do now what would delay the first requests."""
        ...


@dataclass(frozen=True, slots=True)
class Backend:
    """One decoder on one device, with the memory for adapters and keys and values."""

    config: DecoderConfig
    runner: StepRunner
    adapter_memory: AdapterMemory
    adapter_cache: HostCache
    adapter_layout: str  # of images
    residency_sizes: ResidencySizes
    pack_adapter: Callable[[LoraWeights], PackedAdapter]
    num_blocks: int
    max_batched_tokens: int
    max_context_tokens: int
    quantization: ResolvedQuantization
    quantization_reason: str
    device_type: str
    weight_bytes: int
    parameter_count: int
    memory_plan: str  # for the log; empty where memory is not planned
    padded_rows: PaddedRows = not_padded


def element_type(dtype: torch.dtype) -> ElementType:
    """As images name it."""
    return "bfloat16" if dtype == torch.bfloat16 else "float32"
