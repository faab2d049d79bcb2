"""The engine: schedule, run, commit, one step after another, in one thread.

Where the device works by itself, the next step is scheduled and launched while the one ahead of it still runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from loraplex_adapters.base_spec import BaseSpec
from loraplex_adapters.compatibility import load_lora_weights
from loraplex_adapters.errors import AdapterUnavailableError
from loraplex_adapters.package import PackageLimits
from loraplex_server.base.fingerprint import base_spec
from loraplex_server.engine.adapter_arena import PackedAdapter
from loraplex_server.engine.adapter_residency import AdapterReader, AdapterResidency
from loraplex_server.engine.backend import Backend, Progress, Step, build_backend
from loraplex_server.engine.block_manager import BlockManager
from loraplex_server.engine.config import EngineConfig
from loraplex_server.engine.messages import AddSequence, EngineReady, EngineStats, StepOutputs, TokenOutput
from loraplex_server.engine.scheduled_batch import ScheduledBatch
from loraplex_server.engine.scheduler import Scheduler, SchedulerLimits


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


def store_reader(config: EngineConfig, spec: BaseSpec, backend: Backend) -> Callable[[str], PackedAdapter]:
    """Reads an adapter's package from the store and packs it as the backend holds it."""
    # What is in the store was admitted within the front end's limits; only the rank matters here.
    limits = PackageLimits(max_bytes=sys.maxsize, max_rank=config.max_lora_rank)

    def read(digest: str) -> PackedAdapter:
        weights = load_lora_weights(config.store_path / digest, spec, config.max_lora_rank, limits)
        if weights.digest != digest:
            raise AdapterUnavailableError("the stored package was changed; register it again")
        return backend.pack_adapter(weights)

    return read


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
        self._residency = AdapterResidency(config.adapter_slots, backend.adapter_memory, parts.reader)
        self._blocks = BlockManager(backend.num_blocks, config.block_size, prefix_cache=config.prefix_cache)
        self._scheduler = Scheduler(
            SchedulerLimits(
                max_running=config.max_running,
                max_batched_tokens=backend.max_batched_tokens,
                max_context_tokens=backend.max_context_tokens,
            ),
            self._blocks,
            self._residency,
            backend.config.eos_token_ids,
        )
        self._runner = backend.runner
        self._in_flight: _InFlight | None = None
        self._runner.warm_up(lambda done, total: on_progress("capture", done, total))
        self.ready = EngineReady(
            base_fingerprint=parts.fingerprint,
            architecture=backend.config.architecture,
            quantization=backend.quantization,
            device=backend.device_type,
            weight_bytes=backend.weight_bytes,
            parameter_count=backend.parameter_count,
            max_context_tokens=backend.max_context_tokens,
            num_blocks=backend.num_blocks,
            block_size=config.block_size,
            adapter_slots=config.adapter_slots,
            adapter_arena_elements=backend.adapter_memory.capacity,
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
        """Free the adapter's slot as soon as nobody uses it."""
        self._residency.forget(digest)

    def has_work(self) -> bool:
        """True while any sequence waits or runs, or a step is in flight."""
        return self._scheduler.has_work() or self._in_flight is not None

    @property
    def has_step_in_flight(self) -> bool:
        """True while the device works on a step whose tokens are still to be taken."""
        return self._in_flight is not None

    @property
    def is_waiting_for_adapters(self) -> bool:
        """True while sequences are there and packages are being read, so that a step may soon have something to do."""
        return self.has_work() and self._residency.num_loading > 0

    def step(self) -> StepOutputs | None:
        """Schedule and launch a batch, and commit it; or the one before it, where the device runs ahead.

        None if there was nothing to run and nothing to report.
        """
        batch = self._scheduler.schedule()
        outputs = self._scheduler.take_failures()
        launched = None
        if batch is not None:
            step = self._runner.launch(batch, is_continuation=self._in_flight is not None)
            launched = _InFlight(batch, step)
        if self._runner.overlaps:
            launched, self._in_flight = self._in_flight, launched
        if launched is None:
            return StepOutputs(outputs, self.stats()) if outputs else None
        outputs += self._scheduler.commit(launched.batch, launched.step.tokens())
        return StepOutputs(outputs, self.stats(launched.batch, launched.step))

    def stats(self, batch: ScheduledBatch | None = None, step: Step | None = None) -> EngineStats:
        """The present state, and what `batch` did."""
        events = self._residency.take_events()
        resident = self._residency.resident_digests
        return EngineStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            kv_blocks_used=self._blocks.num_used,
            kv_blocks_cached=self._blocks.num_cached,
            adapter_slots_used=len(resident),
            resident_digests=resident,
            step_seconds=step.device_seconds if step else 0.0,
            device_idle_seconds=step.idle_seconds if step else None,
            batch_sequences=batch.num_sequences if batch else 0,
            batch_adapters=len(batch.adapter_slots) if batch else 0,
            prefill_tokens=sum(row.num_tokens for row in batch.prefills) if batch else 0,
            decode_tokens=len(batch.decodes) if batch else 0,
            prefix_hit_tokens=batch.prefix_hit_tokens if batch else 0,
            preemptions=batch.num_preempted if batch else 0,
            adapter_load_seconds=events.load_seconds,
            adapter_evictions=events.evictions,
        )

    def close(self) -> None:
        """Stop the loader thread."""
        self._residency.close()
