"""What an engine needs of its device, built for a CPU or for a GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import psutil
import torch

from loraplex_adapters.base_spec import BaseSpec
from loraplex_adapters.compatibility import LoraWeights
from loraplex_server.adapter_image import ElementType, layout_name
from loraplex_server.engine.adapter_arena import AdapterArena, AdapterLayout, AdapterMemory, PackedAdapter
from loraplex_server.engine.config import EngineConfig, ResidencySizes
from loraplex_server.engine.host_cache import HostCache
from loraplex_server.engine.kv_cache import allocate_kv_cache, block_bytes
from loraplex_server.engine.model_runner import ModelRunner
from loraplex_server.engine.sampler import Sampler
from loraplex_server.engine.scheduled_batch import SampledToken, ScheduledBatch
from loraplex_server.errors import BaseModelError
from loraplex_server.model.config import DecoderConfig
from loraplex_server.model.loader import load_decoder
from loraplex_server.model.numerics import Numerics, ResolvedQuantization, resolve_numerics

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) while an engine starts."""

_CPU_BATCHED_TOKENS = 512
_CPU_KV_CACHE_BYTES = 512 * 2**20


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
        """What the device waited before it, if the step ahead was still in flight when it was launched."""
        ...


class StepRunner(Protocol):
    """Carries out scheduled batches."""

    overlaps: bool  # a step may be launched before the tokens of the one ahead are taken

    def launch(self, batch: ScheduledBatch, *, is_continuation: bool) -> Step: ...

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


def build_backend(config: EngineConfig, spec: BaseSpec, on_progress: Progress) -> Backend:
    """Load the base onto the device that the config asks for. Raises BaseModelError."""
    numerics = resolve_numerics(config.quantization, config.device)
    if numerics.device.type == "cuda":
        if not torch.cuda.is_available():
            raise BaseModelError("device=cuda, but PyTorch finds no GPU here; take device=cpu or auto")
        from loraplex_server.engine.gpu_backend import load_gpu_backend

        return load_gpu_backend(config, numerics, spec, on_progress)
    return _cpu_backend(config, numerics, spec, on_progress)


def usable_cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def element_type(dtype: torch.dtype) -> ElementType:
    """As images name it."""
    return "bfloat16" if dtype == torch.bfloat16 else "float32"


def _cpu_backend(config: EngineConfig, numerics: Numerics, spec: BaseSpec, on_progress: Progress) -> Backend:
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    loaded = load_decoder(
        config.base_path,
        numerics.quantization,
        config.max_context_tokens,
        lambda done, total: on_progress("load", done, total),
    )
    decoder = loaded.decoder
    kv_bytes = block_bytes(decoder.config, config.block_size, loaded.kv_dtype)
    num_blocks = max(1, (config.kv_cache_bytes or _CPU_KV_CACHE_BYTES) // kv_bytes)
    kv_cache = allocate_kv_cache(
        decoder.config, num_blocks, config.block_size, loaded.kv_dtype, loaded.device
    )
    layout = AdapterLayout(spec)
    dtype = loaded.compute_dtype
    arena = AdapterArena(config.adapter_arena_bytes // dtype.itemsize, dtype, layout)
    sizes = config.residency_sizes(
        is_gpu=False, memory_bytes=psutil.virtual_memory().total, num_cores=usable_cores()
    )
    sampler = Sampler(decoder.config.eos_token_ids, decoder.ops.argmax_rows)
    return Backend(
        config=decoder.config,
        runner=ModelRunner(decoder, kv_cache, arena, sampler, loaded.device),
        adapter_memory=arena,
        adapter_cache=HostCache(sizes.host_cache_bytes // dtype.itemsize, dtype, pin_memory=False),
        adapter_layout=layout_name("cpu", element_type(dtype), spec),
        residency_sizes=sizes,
        pack_adapter=lambda weights: layout.pack(weights, dtype),
        num_blocks=num_blocks,
        max_batched_tokens=config.max_batched_tokens or max(_CPU_BATCHED_TOKENS, config.max_running),
        max_context_tokens=loaded.max_context_tokens,
        quantization=loaded.quantization,
        quantization_reason=numerics.reason,
        device_type=loaded.device.type,
        weight_bytes=loaded.weight_bytes,
        parameter_count=loaded.parameter_count,
        memory_plan="",
    )
