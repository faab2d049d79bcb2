"""Drives an engine as its process does, and keeps what every sequence got."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from loraplex_server.engine.engine import Engine
from loraplex_server.engine.messages import (
    AdapterLoadFailure,
    AddSequence,
    EngineStats,
    FinishReason,
    SamplingParams,
    Tier,
    TokenLogprob,
    TokenOutput,
)


@dataclass
class Completion:
    """What one sequence got so far."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    num_cached: int = 0
    end: TokenOutput | None = None

    @property
    def finish_reason(self) -> FinishReason | None:
        return None if self.end is None else self.end.finish_reason


@dataclass
class Totals:
    """What all steps did together."""

    preemptions: int = 0
    prefix_hit_tokens: int = 0
    adapter_loads: int = 0
    adapter_activations: int = 0
    adapter_evictions: int = 0
    compacted_bytes: int = 0
    load_failures: list[AdapterLoadFailure] = field(default_factory=list)
    max_batch_adapters: int = 0
    max_batch_sequences: int = 0
    steps_with_prefill_and_decode: int = 0


class EngineRun:
    """Not thread-safe, like the engine. Closes it at the end of a `with` block."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.completions: list[Completion] = []  # by number, as `add` returns it
        self.totals = Totals()
        self.tiers: dict[str, Tier] = {}  # as the stats told
        self._first_id = 0

    def __enter__(self) -> EngineRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    def add(self, prompt: list[int], digest: str | None = None, salt: bytes = b"", **sampling: Any) -> int:
        """Greedy, up to 16 tokens and past the end of sequence, unless `sampling` says otherwise."""
        params = SamplingParams(**{"temperature": 0.0, "max_tokens": 16, "ignore_eos": True, **sampling})
        number = len(self.completions)
        self.completions.append(Completion(prompt))
        sequence_id = self._first_id + number
        self.engine.add(AddSequence(sequence_id, list(prompt), digest, salt, params, time.monotonic()))
        return number

    def load(self, *digests: str) -> None:
        """Make adapters resident, so that requests of all of them can share the first step."""
        for digest in digests:
            self.add([1], digest, max_tokens=1)
        self._first_id += len(self.finish())
        self.completions = []

    def abort(self, *numbers: int) -> None:
        self._collect(self.engine.abort([self._first_id + number for number in numbers]))

    def step(self) -> EngineStats | None:
        """One step; None if there was nothing to run yet."""
        result = self.engine.step()
        if result is None:
            return None
        self._collect(result.outputs)
        self._count(result.stats)
        return result.stats

    def finish(self, timeout_s: float = 30.0) -> list[Completion]:
        """Step until every sequence has ended."""
        deadline_s = time.monotonic() + timeout_s
        while self.engine.has_work():
            if self.step() is None:
                time.sleep(0.001)  # an adapter is being read
            assert time.monotonic() < deadline_s, "the engine makes no progress"
        assert all(completion.end is not None for completion in self.completions)
        return self.completions

    def assert_nothing_is_left(self, *digests: str) -> None:
        """No sequence, block or lease; an adapter in use could not be forgotten."""
        assert not self.engine.has_work()
        assert not self.engine.is_waiting_for_adapters
        for digest in digests:
            self.engine.forget_adapter(digest)
        self.settle()
        stats = self.engine.stats()
        assert stats.num_running == stats.num_waiting == stats.kv_blocks_used == 0
        assert stats.adapters_loading == stats.adapter_slots_used == 0
        assert stats.arena_bytes_used == stats.host_cache_bytes_used == 0

    def settle(self, timeout_s: float = 30.0) -> None:
        """Until nothing is read or copied any more, as the engine's loop does without sequences."""
        deadline_s = time.monotonic() + timeout_s
        while self.engine.is_loading:
            self.step()
            time.sleep(0.0005)
            assert time.monotonic() < deadline_s, "a load makes no progress"

    def _collect(self, outputs: list[TokenOutput]) -> None:
        for output in outputs:
            completion = self.completions[output.sequence_id - self._first_id]
            assert completion.end is None, "an output after the end"
            completion.tokens += output.token_ids
            completion.logprobs += output.logprobs or []
            completion.num_cached += output.cached_prompt_tokens
            if output.finish_reason is not None:
                completion.end = output

    def _count(self, stats: EngineStats) -> None:
        totals = self.totals
        totals.preemptions += stats.preemptions
        totals.prefix_hit_tokens += stats.prefix_hit_tokens
        totals.adapter_loads += len(stats.adapter_load_seconds)
        totals.adapter_activations += len(stats.adapter_copy_seconds)
        totals.adapter_evictions += stats.adapter_evictions
        totals.compacted_bytes += stats.compacted_bytes
        totals.load_failures += stats.load_failures
        self.tiers.update((move.digest, move.tier) for move in stats.residency)
        totals.max_batch_adapters = max(totals.max_batch_adapters, stats.batch_adapters)
        totals.max_batch_sequences = max(totals.max_batch_sequences, stats.batch_sequences)
        totals.steps_with_prefill_and_decode += bool(stats.prefill_tokens and stats.decode_tokens)
