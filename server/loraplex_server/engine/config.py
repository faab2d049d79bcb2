"""What one engine may hold and do. Plain and typed, so that it can be sent to the spawned process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loraplex_server.engine.prefill_budget import PrefillSpread

Quantization = Literal["auto", "nf4", "int8", "bf16", "fp32"]
Device = Literal["auto", "cpu", "cuda"]


_AT_LEAST_ONE = (
    "max_context_tokens",
    "block_size",
    "adapter_slots",
    "max_lora_rank",
    "host_cache_bytes",
    "adapter_copy_bytes",
    "adapter_load_threads",
    "prefill_spread_steps",
    "min_prefill_rows",
)
_GPU_SPREAD_STEPS = 16
_CPU_SPREAD_STEPS = 1  # each row costs time there, so spreading them only delays the first token


@dataclass(frozen=True, slots=True)
class ResidencySizes:
    """How adapters come from disk into the arena."""

    host_cache_bytes: int  # of adapters in host memory
    copy_bytes: int  # into the arena, queued ahead at the end of a step, and within it for each step
    load_threads: int  # that read pieces of adapters
    max_reads: int  # adapters that are read at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Validated once, then read-only."""

    base_path: Path  # a Hugging Face folder
    store_path: Path  # packages by digest, see loraplex_adapters.store
    quantization: Quantization = "auto"
    device: Device = "auto"
    max_context_tokens: int = 2048  # prompt and completion of one sequence; lowered to what the base supports
    max_batched_tokens: int | None = (
        None  # tokens per forward pass, prefill and decode together; None: 512, GPU 4096
    )
    max_running: int = 64  # sequences with KV blocks
    prefill_spread_steps: int | None = None  # of a prompt while others decode; None: 1 on a CPU, 16 on a GPU
    min_prefill_rows: int = 8  # of a step that takes a part of a prompt
    block_size: int = 32  # tokens per KV block
    kv_cache_bytes: int | None = None  # None: 512 MiB on a CPU, what the plan leaves on a GPU
    gpu_memory_share: float = 0.9  # of the memory that is free at the start
    int8_head: bool = False  # hold the output head in int8 on a GPU, whatever the layers have
    adapter_slots: int = 16  # adapters in the arena at once
    adapter_arena_bytes: int = 256 * 2**20
    images_path: Path | None = None  # adapter images; None: "images" beside the store
    host_cache_bytes: int | None = None  # None: 1 GiB or 1/8 of a CPU's memory, 4 GiB or 1/4 with a GPU
    adapter_copy_bytes: int | None = (
        None  # queued into the arena at a time; None: 2 MiB on a CPU, 256 MiB on a GPU
    )
    adapter_load_threads: int | None = (
        None  # that read adapters; None: 1 on a CPU, with a GPU 3/4 of the cores up to 12
    )
    max_lora_rank: int = 128
    prefix_cache: bool = True
    num_threads: int | None = None  # None: one per core
    must_hold_context: bool = (
        False  # refuse a key-value cache that one sequence can outgrow, as a GPU always does
    )

    def __post_init__(self) -> None:
        if self.max_batched_tokens is not None and self.max_batched_tokens < self.max_running:
            raise ValueError(
                f"max_batched_tokens={self.max_batched_tokens} cannot give each of "
                f"max_running={self.max_running} sequences one token per step; raise it or lower max_running"
            )
        for name in _AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")

    @property
    def images_root(self) -> Path:
        """Where adapter images are."""
        return self.images_path or self.store_path.parent / "images"

    def prefill_spread(self, *, is_gpu: bool) -> PrefillSpread:
        """What was asked for, or what suits the device."""
        suited = _GPU_SPREAD_STEPS if is_gpu else _CPU_SPREAD_STEPS
        return PrefillSpread(self.prefill_spread_steps or suited, self.min_prefill_rows)

    def residency_sizes(self, *, is_gpu: bool, memory_bytes: int, num_cores: int) -> ResidencySizes:
        """What was asked for, or what suits the device; memory and cores are the host's.

        On a CPU a step waits for a copy; beside a GPU's steps the bus takes some 5 ms for what is queued ahead.
        """
        if is_gpu:
            suited = ResidencySizes(
                host_cache_bytes=min(4 * 2**30, memory_bytes // 4),
                copy_bytes=256 * 2**20,
                load_threads=max(1, min(12, num_cores * 3 // 4)),
                max_reads=2,
            )
        else:
            suited = ResidencySizes(
                host_cache_bytes=min(2**30, memory_bytes // 8),
                copy_bytes=2 * 2**20,
                load_threads=1,
                max_reads=1,
            )
        load_threads = self.adapter_load_threads or suited.load_threads
        return ResidencySizes(
            self.host_cache_bytes or suited.host_cache_bytes,
            self.adapter_copy_bytes or suited.copy_bytes,
            load_threads,
            min(suited.max_reads, load_threads),
        )
