"""Times an engine in this process: decode steps, prefill, a stream of requests over many adapters."""

from __future__ import annotations

import gc
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.random_base import RandomAdapters, RandomWeights, elements_per_rank, random_base_spec
from benchmarks.shapes import SHAPES
from loraplex_adapters.base_spec import BaseSpec
from loraplex_server.engine.adapter_loader import AdapterReader
from loraplex_server.engine.backend import Backend
from loraplex_server.engine.config import EngineConfig
from loraplex_server.engine.engine import Engine, EngineParts
from loraplex_server.engine.gpu_backend import build_gpu_backend
from loraplex_server.engine.messages import AddSequence, SamplingParams, StepOutputs
from loraplex_server.model.config import DecoderConfig
from loraplex_server.model.numerics import resolve_numerics

_IDS = itertools.count(1)

ReaderOf = Callable[[EngineConfig, BaseSpec, Backend, RandomAdapters], AdapterReader]
"""What an engine is made of -> where its adapters come from."""


@dataclass(frozen=True, slots=True)
class DecodeResult:
    """Decode alone: the difference of two output lengths."""

    ms_per_step: float
    idle_share: float  # of the time between the first and the last decode step
    tokens_per_second: float  # prompts and outputs of the longer run, over all of it


@dataclass(frozen=True, slots=True)
class ThroughputResult:
    """A stream of requests from first to last."""

    tokens_per_second: float  # generated
    adapter_loads: int


class Bench:
    """An engine of a named shape with random weights, and what drives it."""

    def __init__(
        self,
        shape: str,
        quantization: str,
        *,
        device: str = "cuda",
        adapter_slots: int = 64,
        arena_bytes: int = 6 * 2**30,
        max_running: int = 128,
        max_context: int = 2304,
        max_batched_tokens: int = 4096,
        prefill_spread_steps: int | None = None,
        min_prefill_rows: int = 8,
        kv_cache_bytes: int | None = 20 * 2**30,
        int8_head: bool = False,
        max_rank: int = 64,
        host_cache_bytes: int | None = None,
        reader: ReaderOf | None = None,
    ) -> None:
        """`reader` gives the adapters; by default random ones, from memory."""
        started = time.monotonic()
        self.decoder_config = DecoderConfig.from_hf(SHAPES[shape])
        numerics = resolve_numerics(quantization, device)
        config = EngineConfig(
            base_path=Path("random"),
            store_path=Path("random"),
            quantization=numerics.quantization,
            max_context_tokens=max_context,
            max_batched_tokens=max_batched_tokens,
            prefill_spread_steps=prefill_spread_steps,
            min_prefill_rows=min_prefill_rows,
            max_running=max_running,
            adapter_slots=adapter_slots,
            adapter_arena_bytes=arena_bytes,
            max_lora_rank=max_rank,
            kv_cache_bytes=kv_cache_bytes,
            prefix_cache=False,
            int8_head=int8_head,
            host_cache_bytes=host_cache_bytes,
        )
        self.spec = spec = random_base_spec(self.decoder_config)
        self.weights = RandomWeights(self.decoder_config, numerics.device)
        backend = build_gpu_backend(
            self.weights, self.decoder_config, config, numerics, spec, lambda stage, done, total: None
        )
        self.adapters = RandomAdapters(spec, max_rank, numerics.compute_dtype)
        self.adapter_layout = backend.adapter_layout
        read = self.adapters.read if reader is None else reader(config, spec, backend, self.adapters)
        self.engine = Engine(config, parts=EngineParts(backend, "random", read))
        self.start_seconds = time.monotonic() - started

    @staticmethod
    def adapter_bytes(shape: str, rank: int) -> int:
        """Of an adapter on all linear layers in bf16."""
        spec = random_base_spec(DecoderConfig.from_hf(SHAPES[shape]))
        return 2 * rank * elements_per_rank(spec)

    def step_bytes(self, rows: int, ranks: Sequence[int]) -> int:
        """What a decode step reads at least: the base, but for a table of embeddings of its own, and of each adapter in
        the batch its weights. Keys and values are not counted.

        ranks  of the adapters that are dealt to the rows in turn
        """
        config = self.decoder_config
        table = 0 if config.tie_embeddings else config.vocab_size * config.hidden_size * 2
        in_batch = ranks[:rows]
        return self.engine.ready.weight_bytes - table + sum(self.adapters.nbytes(rank) for rank in in_batch)

    def close(self) -> None:
        """Free the device's memory."""
        self.engine.close()
        del self.engine
        gc.collect()
        torch.cuda.empty_cache()

    def add(self, prompt_tokens: int, output_tokens: int, adapter: str | None, seed: int = 0) -> int:
        """One greedy request of exact lengths; its sequence id."""
        sequence_id = next(_IDS)
        generator = random.Random(seed + sequence_id)
        prompt = [generator.randrange(1000, self.decoder_config.vocab_size) for _ in range(prompt_tokens)]
        sampling = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True)
        self.engine.add(AddSequence(sequence_id, prompt, adapter, b"", sampling, time.monotonic()))
        return sequence_id

    def run(self) -> tuple[float, float, float]:
        """Until all is done: (seconds, seconds that the device worked, seconds that it waited) of steps of decodes."""
        busy = idle = 0.0
        started = time.perf_counter()
        while self.engine.has_work():
            result = self.engine.step()
            if result is not None and result.stats.prefill_tokens == 0:
                busy += result.stats.step_seconds
                idle += result.stats.device_idle_seconds or 0.0
        return time.perf_counter() - started, busy, idle

    def warm_adapters(self, adapters: Sequence[str]) -> None:
        """Make adapters resident."""
        for adapter in adapters:
            self.add(8, 2, adapter)
        self.run()

    def decode(
        self, rows: int, adapters: Sequence[str], prompt_tokens: int, output_tokens: tuple[int, int]
    ) -> DecodeResult:
        """`rows` sequences over `adapters` in turn (none: the base alone), at two output lengths."""
        seconds = []
        idle_share = 0.0
        for length in output_tokens:
            for row in range(rows):
                self.add(prompt_tokens, length, adapters[row % len(adapters)] if adapters else None)
            elapsed, busy, idle = self.run()
            seconds.append(elapsed)
            idle_share = idle / (busy + idle) if busy else 0.0
        steps = output_tokens[1] - output_tokens[0]
        tokens = rows * (prompt_tokens + output_tokens[1])
        return DecodeResult((seconds[1] - seconds[0]) / steps * 1e3, idle_share, tokens / seconds[1])

    def prefill(self, rows: int, adapters: Sequence[str], prompt_tokens: int) -> float:
        """Prompt tokens per second when nothing is generated but each prompt's first token."""
        for row in range(rows):
            self.add(prompt_tokens, 1, adapters[row % len(adapters)] if adapters else None)
        elapsed, _, _ = self.run()
        return rows * prompt_tokens / elapsed

    def stream(
        self,
        num_requests: int,
        concurrency: int,
        adapters: Sequence[str],
        zipf: float,
        prompt_tokens: int,
        output_tokens: int,
        on_step: Callable[[StepOutputs], None] = lambda result: None,
        *,
        apart: bool = False,
    ) -> ThroughputResult:
        """Closed loop: `concurrency` requests at any time, adapters drawn by Zipf with exponent `zipf`.

        apart  the requests that are in flight first end one after another, evenly over `output_tokens`, so that those
               behind them do not begin together
        """
        generator = random.Random(7)
        weights = [1.0 / (rank + 1) ** zipf for rank in range(len(adapters))]
        chosen = iter(generator.choices(adapters, weights, k=num_requests))
        first = range(1, concurrency + 1) if apart else ()
        lengths = itertools.chain(
            (-(-output_tokens * part // concurrency) for part in first), itertools.repeat(output_tokens)
        )
        in_flight = loads = tokens = 0
        left = num_requests
        started = time.perf_counter()
        while left or self.engine.has_work():
            while left and in_flight < concurrency:
                self.add(prompt_tokens, next(lengths), next(chosen))
                left, in_flight = left - 1, in_flight + 1
            result = self.engine.step()
            if result is None:
                continue
            on_step(result)
            loads += len(result.stats.adapter_load_seconds)
            for output in result.outputs:
                tokens += len(output.token_ids)
                in_flight -= output.finish_reason is not None
        return ThroughputResult(tokens / (time.perf_counter() - started), loads)
