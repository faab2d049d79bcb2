"""Our engine, bare: no front end, no socket."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.subject import Facts
from benchmarks.workload import Run, Work
from loraplex_adapters.package import PackageLimits
from loraplex_adapters.store import PackageStore
from loraplex_server.engine.config import EngineConfig, Quantization
from loraplex_server.engine.engine import Engine
from loraplex_server.engine.messages import AddSequence, SamplingParams

_ADAPTER_POLL_S = 0.001


class EngineSubject:
    """Implements `benchmarks.subject.Subject`."""

    def __init__(self, base: Path, quantization: Quantization, packages: Mapping[str, Path]) -> None:
        """`packages`: adapter name -> PEFT folder."""
        self._folder = tempfile.TemporaryDirectory(prefix="loraplex-benchmark-")
        store_path = Path(self._folder.name)
        store = PackageStore(store_path, PackageLimits())
        self._digests = {name: store.put(package).digest for name, package in packages.items()}
        self._engine = Engine(
            # Without a prefix cache, so that a round does not answer the next one's prompts.
            EngineConfig(
                base_path=base,
                store_path=store_path,
                quantization=quantization,
                device="cpu",
                prefix_cache=False,
            )
        )
        self._num_sequences = 0

    def facts(self) -> Facts:
        ready = self._engine.ready
        return {
            "quantization": ready.quantization,
            "weight_bytes": ready.weight_bytes,
            "threads": torch.get_num_threads(),
        }

    def run(self, work: Work) -> Run:
        """One step after another, with nothing between them."""
        first_id = self._num_sequences
        started_s = time.perf_counter()
        for row in work.rows:
            sampling = SamplingParams(temperature=0, max_tokens=work.num_tokens, ignore_eos=True)
            digest = self._digests[row.adapter] if row.adapter else None
            ids = list(row.prompt.token_ids)
            self._engine.add(AddSequence(self._num_sequences, ids, digest, b"", sampling, time.monotonic()))
            self._num_sequences += 1
        first_tokens: dict[int, int] = {}
        num_tokens = num_decode_tokens = 0
        decode_s = 0.0
        while self._engine.has_work():
            step_started_s = time.perf_counter()
            result = self._engine.step()
            step_s = time.perf_counter() - step_started_s
            if result is None:  # an adapter is being read
                time.sleep(_ADAPTER_POLL_S)
                continue
            for output in result.outputs:
                if output.error_message is not None:
                    raise RuntimeError(output.error_message)
                num_tokens += len(output.token_ids)
                first_tokens.setdefault(output.sequence_id, output.token_ids[0])
            if result.stats.decode_tokens == len(work.rows):
                decode_s += step_s
                num_decode_tokens += len(work.rows)
        total_s = time.perf_counter() - started_s
        first = tuple(first_tokens[first_id + index] for index in range(len(work.rows)))
        return Run(total_s, num_tokens, decode_s, num_decode_tokens, first)

    def close(self) -> None:
        self._engine.close()
        self._folder.cleanup()
