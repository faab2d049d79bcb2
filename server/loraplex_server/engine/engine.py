"""The engine: schedule, run, commit, one step after another, in one thread."""

from __future__ import annotations

import time

import torch

from loraplex_adapters.compatibility import load_lora_weights
from loraplex_adapters.errors import AdapterUnavailableError
from loraplex_server.base.fingerprint import base_spec
from loraplex_server.engine.adapter_arena import AdapterArena, AdapterLayout, PackedAdapter
from loraplex_server.engine.adapter_residency import AdapterResidency
from loraplex_server.engine.block_manager import BlockManager
from loraplex_server.engine.config import EngineConfig
from loraplex_server.engine.kv_cache import allocate_kv_cache, block_bytes
from loraplex_server.engine.messages import AddSequence, EngineReady, EngineStats, StepOutputs, TokenOutput
from loraplex_server.engine.model_runner import ModelRunner
from loraplex_server.engine.sampler import Sampler
from loraplex_server.engine.scheduled_batch import ScheduledBatch
from loraplex_server.engine.scheduler import Scheduler, SchedulerLimits
from loraplex_server.model.loader import load_decoder


class Engine:
    """One resident base, many adapters. Not thread-safe; its process owns it."""

    def __init__(self, config: EngineConfig) -> None:
        """Load the base model and reserve all memory. Raises BaseModelError when the folder cannot be served."""
        started = time.monotonic()
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        loaded = load_decoder(config.base_path, config.quantization, config.device, config.max_context_tokens)
        decoder_config = loaded.decoder.config
        spec = base_spec(config.base_path)
        kv_bytes = block_bytes(decoder_config, config.block_size, loaded.kv_dtype)
        num_blocks = max(1, config.kv_cache_bytes // kv_bytes)
        kv_cache = allocate_kv_cache(
            decoder_config, num_blocks, config.block_size, loaded.kv_dtype, loaded.device
        )
        layout = AdapterLayout(spec)

        def read_adapter(digest: str) -> PackedAdapter:
            weights = load_lora_weights(config.store_path / digest, spec, config.max_lora_rank)
            if weights.digest != digest:
                raise AdapterUnavailableError("the stored package was changed; register it again")
            return layout.pack(weights, loaded.compute_dtype)

        arena_elements = config.adapter_arena_bytes // loaded.compute_dtype.itemsize
        arena = AdapterArena(arena_elements, loaded.compute_dtype, loaded.device)
        self._residency = AdapterResidency(config.adapter_slots, arena, layout, read_adapter)
        self._blocks = BlockManager(num_blocks, config.block_size, prefix_cache=config.prefix_cache)
        self._scheduler = Scheduler(
            SchedulerLimits(
                max_running=config.max_running,
                max_batched_tokens=config.max_batched_tokens,
                max_context_tokens=loaded.max_context_tokens,
            ),
            self._blocks,
            self._residency,
            decoder_config.eos_token_ids,
        )
        self._runner = ModelRunner(
            loaded.decoder,
            kv_cache,
            self._residency,
            Sampler(decoder_config.eos_token_ids, loaded.device),
            loaded.device,
        )
        self.ready = EngineReady(
            base_fingerprint=spec.fingerprint,
            architecture=decoder_config.architecture,
            quantization=loaded.quantization,
            device=loaded.device.type,
            weight_bytes=loaded.weight_bytes,
            parameter_count=loaded.parameter_count,
            max_context_tokens=loaded.max_context_tokens,
            num_blocks=num_blocks,
            block_size=config.block_size,
            adapter_slots=config.adapter_slots,
            max_running=config.max_running,
            load_seconds=time.monotonic() - started,
            eos_token_ids=tuple(decoder_config.eos_token_ids),
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
        """True while any sequence waits or runs."""
        return self._scheduler.has_work()

    @property
    def is_waiting_for_adapters(self) -> bool:
        """True while packages are being read, so that an idle step may soon have something to do."""
        return self._residency.num_loading > 0

    def step(self) -> StepOutputs | None:
        """Schedule, run and commit one batch. None if there was nothing to run and nothing to report."""
        started = time.monotonic()
        batch = self._scheduler.schedule()
        outputs = self._scheduler.take_failures()
        if batch is None:
            return StepOutputs(outputs, self.stats()) if outputs else None
        sampled = self._runner.run(batch)
        outputs += self._scheduler.commit(batch, sampled)
        return StepOutputs(outputs, self.stats(batch, time.monotonic() - started))

    def stats(self, batch: ScheduledBatch | None = None, step_seconds: float = 0.0) -> EngineStats:
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
            step_seconds=step_seconds,
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
