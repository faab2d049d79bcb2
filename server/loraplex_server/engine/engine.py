"""The engine: schedule, run, commit, one step after another, in one thread.

Where the device works by itself, the next step is scheduled and launched while the one ahead of it still runs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from loraplex_adapters.base_spec import BaseSpec
from loraplex_server.adapter_image import remove_leftovers
from loraplex_server.base.fingerprint import base_spec
from loraplex_server.engine.adapter_loader import AdapterReader
from loraplex_server.engine.adapter_residency import AdapterResidency
from loraplex_server.engine.backend import Backend, Progress, Step
from loraplex_server.engine.backends import build_backend
from loraplex_server.engine.block_manager import BlockManager
from loraplex_server.engine.config import EngineConfig
from loraplex_server.engine.messages import AddSequence, EngineReady, EngineStats, StepOutputs, TokenOutput
from loraplex_server.engine.scheduled_batch import ScheduledBatch
from loraplex_server.engine.scheduler import Scheduler, SchedulerLimits
from loraplex_server.engine.step_wait import StepWait
from loraplex_server.engine.store_reader import StorePlaces, StoreReader


def _no_progress(stage: str, done: int, total: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True, slots=True)
class EngineParts:
    """A loaded base and where its adapters come from."""

    backend: Backend
    fingerprint: str
    reader: AdapterReader


def load_parts(config: EngineConfig, on_progress: Progress) -> EngineParts:
    """The base of the config's folder, and adapters from its store. Raises BaseModelError."""
    spec = base_spec(config.base_path)
    backend = build_backend(config, spec, on_progress)
    return EngineParts(backend, spec.fingerprint, store_reader(config, spec, backend))


def store_reader(config: EngineConfig, spec: BaseSpec, backend: Backend) -> AdapterReader:
    """Reads adapters of the config's store as the backend holds them."""
    remove_leftovers(config.images_root)
    return StoreReader(
        StorePlaces(config.store_path, config.images_root, backend.adapter_layout),
        spec,
        config.max_lora_rank,
        backend.pack_adapter,
        backend.residency_sizes.load_threads,
    )


@dataclass(frozen=True, slots=True)
class _InFlight:
    batch: ScheduledBatch
    step: Step


class Engine:
    """One resident base, many adapters. Not thread-safe; its process owns it."""

    def __init__(
        self,
        config: EngineConfig,
        on_progress: Progress = _no_progress,
        parts: EngineParts | None = None,
    ) -> None:
        """Load the base, unless `parts` are given, reserve all memory and compile what there is to compile.

        Raises BaseModelError when the folder cannot be served.
        """
        started = time.monotonic()
        parts = parts or load_parts(config, on_progress)
        backend = parts.backend
        self._residency = AdapterResidency(
            config.adapter_slots,
            backend.adapter_memory,
            backend.adapter_cache,
            parts.reader,
            copy_bytes=backend.residency_sizes.copy_bytes,
            max_reads=backend.residency_sizes.max_reads,
            low_priority=backend.device_type == "cpu",
        )
        self._blocks = BlockManager(backend.num_blocks, config.block_size, prefix_cache=config.prefix_cache)
        self._scheduler = Scheduler(
            SchedulerLimits(
                max_running=config.max_running,
                max_batched_tokens=backend.max_batched_tokens,
                max_context_tokens=backend.max_context_tokens,
                prefill=config.prefill_spread(is_gpu=backend.device_type == "cuda"),
                padded_rows=backend.padded_rows,
            ),
            self._blocks,
            self._residency,
            backend.config.eos_token_ids,
        )
        self._runner = backend.runner
        self._wait = StepWait(self._residency)
        self._in_flight: _InFlight | None = None
        self._runner.warm_up(lambda done, total: on_progress("capture", done, total))
        self.ready = EngineReady(
            base_fingerprint=parts.fingerprint,
            architecture=backend.config.architecture,
            quantization=backend.quantization,
            quantization_reason=backend.quantization_reason,
            device=backend.device_type,
            weight_bytes=backend.weight_bytes,
            parameter_count=backend.parameter_count,
            max_context_tokens=backend.max_context_tokens,
            num_blocks=backend.num_blocks,
            block_size=config.block_size,
            adapter_slots=config.adapter_slots,
            adapter_arena_elements=backend.adapter_memory.capacity,
            adapter_arena_bytes=backend.adapter_memory.capacity * backend.adapter_memory.element_bytes,
            adapter_element_bytes=backend.adapter_memory.element_bytes,
            adapter_layout=backend.adapter_layout,
            host_cache_bytes=backend.residency_sizes.host_cache_bytes,
            max_running=config.max_running,
            load_seconds=time.monotonic() - started,
            eos_token_ids=tuple(backend.config.eos_token_ids),
            memory_plan=backend.memory_plan,
        )

    def add(self, command: AddSequence) -> None:
        """Admit a sequence; its outputs come from the steps that follow."""
        self._scheduler.add(command)

    def abort(self, sequence_ids: list[int]) -> list[TokenOutput]:
        """End sequences now; blocks and adapter leases are free when this returns."""
        return self._scheduler.abort(sequence_ids)

    def forget_adapter(self, digest: str) -> None:
        """Free the adapter's slot and host copy as soon as nobody uses them."""
        self._residency.forget(digest)

    def pin_adapters(self, digests: list[str]) -> None:
        """Load these, and evict none of them until told otherwise; failures come with the stats."""
        self._residency.pin(digests)

    def warm_adapter(self, digest: str) -> None:
        """Load an adapter into a slot; a failure comes with the stats."""
        self._residency.warm(digest)

    def has_work(self) -> bool:
        """True while any sequence waits or runs, or a step is in flight."""
        return self._scheduler.has_work() or self._in_flight is not None

    @property
    def has_step_in_flight(self) -> bool:
        """True while the device works on a step whose tokens are still to be taken."""
        return self._in_flight is not None

    @property
    def is_waiting_for_adapters(self) -> bool:
        """True while sequences are there and adapters on their way, so that a step may soon have something to do."""
        return self.has_work() and self._residency.num_loading > 0

    @property
    def is_loading(self) -> bool:
        """True while adapters are read, copied or moved, with or without sequences; steps take that further."""
        return self._residency.is_busy

    def step(self) -> StepOutputs | None:
        """Schedule and launch a batch, and commit it; or the one before it, where the device runs ahead.

        None if there was nothing to run and nothing to report.
        """
        batch = self._schedule()
        outputs = self._scheduler.take_failures()
        launched = None
        if batch is not None:
            step = self._runner.launch(batch, is_continuation=self._in_flight is not None)
            launched = _InFlight(batch, step)
        if self._runner.overlaps:
            launched, self._in_flight = self._in_flight, launched
        if launched is None:
            return StepOutputs(outputs, self.stats()) if outputs or self._residency.has_news else None
        outputs += self._scheduler.commit(launched.batch, self._wait.tokens_of(launched.step))
        return StepOutputs(outputs, self.stats(launched.batch, launched.step))

    def _schedule(self) -> ScheduledBatch | None:
        """The next batch; adapters go on their way beside it."""
        self._residency.advance()
        batch = self._scheduler.schedule()
        is_idle = batch is None and self._in_flight is None
        self._residency.copy(is_idle=is_idle)
        if is_idle:  # what was copied at once is of use at once
            self._residency.advance()
            batch = self._scheduler.schedule()
        return batch

    def stats(self, batch: ScheduledBatch | None = None, step: Step | None = None) -> EngineStats:
        """The present state, and what `batch` did."""
        events = self._residency.take_events()
        return EngineStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            kv_blocks_used=self._blocks.num_used,
            kv_blocks_cached=self._blocks.num_cached,
            adapter_slots_used=self._residency.num_slots_used,
            adapter_slots_pinned=self._residency.num_slots_pinned,
            adapter_leases=self._residency.num_leases,
            adapters_loading=self._residency.num_loading,
            arena_bytes_used=self._residency.arena_bytes_used,
            host_cache_bytes_used=self._residency.host_bytes_used,
            step_seconds=step.device_seconds if step else 0.0,
            device_idle_seconds=step.idle_seconds if step else None,
            batch_sequences=batch.num_sequences if batch else 0,
            batch_adapters=len(batch.adapter_slots) if batch else 0,
            prefill_tokens=sum(row.num_tokens for row in batch.prefills) if batch else 0,
            decode_tokens=len(batch.decodes) if batch else 0,
            prefix_hit_tokens=batch.prefix_hit_tokens if batch else 0,
            preemptions=batch.num_preempted if batch else 0,
            residency=events.moves,
            load_failures=events.failures,
            adapter_load_seconds=events.read_seconds,
            adapter_copy_seconds=events.copy_seconds,
            adapter_evictions=events.evictions,
            compacted_bytes=events.compacted_bytes,
        )

    def close(self) -> None:
        """Stop the loader's threads."""
        self._residency.close()
