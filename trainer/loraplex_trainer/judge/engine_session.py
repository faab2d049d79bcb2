"""The server's own engine process, started as `loraplex serve` starts it, with a package store of its own."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

import torch

from loraplex_adapters.store import PackageStore
from loraplex_server.engine.config import EngineConfig
from loraplex_server.engine.messages import AddSequence, FinishReason, SamplingParams, TokenOutput
from loraplex_server.engine_client import EngineClient, OnProgress
from loraplex_server.releases.golden_engine import GoldenCompleter
from loraplex_server.releases.unseen_run import run_unseen
from loraplex_trainer.base_model import Precision

TOP_LOGPROBS = 20
_KV_CACHE_BYTES = {"cpu": 256 * 2**20, "cuda": 4 * 2**30}


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One greedy completion."""

    prompt: Sequence[int]
    digest: str | None  # None: the base
    max_tokens: int
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class EngineAnswer:
    """What the engine made of a request."""

    token_ids: tuple[int, ...]  # with the end-of-sequence token, where it ended by itself
    top: tuple[
        dict[int, float], ...
    ]  # at each position: log-probability of the likeliest tokens and the chosen one
    ended: bool


class EngineSession:
    """Owns an engine process and a temporary store between `async with` and its end. Lives in one event loop."""

    def __init__(
        self,
        base_folder: Path,
        precision: Precision,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        on_progress: OnProgress | None = None,
        max_rank: int = 128,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="loraplex-gate-")
        root = Path(self._folder.name)
        self._store = PackageStore(root / "packages")
        self._salts = 0
        config = EngineConfig(
            base_path=base_folder,
            store_path=root / "packages",
            quantization=precision,
            device=device,
            kv_cache_bytes=_KV_CACHE_BYTES[_device_type(device)],
            max_lora_rank=max_rank,
            num_threads=torch.get_num_threads(),  # as many as this process was given
        )
        self._engine = EngineClient(config, _ignore, _ignore, on_progress)

    async def __aenter__(self) -> EngineSession:
        """Raises EngineUnavailableError or InsufficientMemoryError where the engine does not start."""
        try:
            await self._engine.start()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._engine.stop()
        self._folder.cleanup()

    @property
    def device(self) -> str:
        """ "cpu" or "cuda"."""
        assert self._engine.ready is not None
        return self._engine.ready.device

    def put(self, package: Path) -> str:
        """Store a package, so that requests may name its digest, which is returned. Raises AdapterInvalidError."""
        return self._store.put(package).digest

    def golden_completer(self) -> GoldenCompleter:
        """For `loraplex_server.admission.golden`."""
        return GoldenCompleter(self._engine, self._new_salt())

    async def complete(
        self, requests: Sequence[EngineRequest], on_answer: Callable[[], None] | None = None
    ) -> list[EngineAnswer]:
        """All at once, as far as the engine has room; none shares cached blocks with an earlier call.

        Raises EngineError, AdapterUnavailableError, AdapterTooLargeError, ContextOverflowError.
        """
        salt = self._new_salt()

        async def run(request: EngineRequest) -> EngineAnswer:
            sampling = SamplingParams(
                temperature=0.0,
                max_tokens=request.max_tokens,
                ignore_eos=request.ignore_eos,
                top_logprobs=TOP_LOGPROBS,
            )
            outputs = await run_unseen(
                self._engine,
                AddSequence(0, list(request.prompt), request.digest, salt, sampling, time.monotonic()),
            )
            if on_answer is not None:
                on_answer()
            return _answer(outputs)

        return await asyncio.gather(*map(run, requests))

    def _new_salt(self) -> bytes:
        self._salts += 1
        return self._salts.to_bytes(4, "big")


def _answer(outputs: Sequence[TokenOutput]) -> EngineAnswer:
    positions = [position for output in outputs for position in output.logprobs or ()]
    return EngineAnswer(
        token_ids=tuple(token_id for output in outputs for token_id in output.token_ids),
        top=tuple({**dict(each.top), each.token_id: each.logprob} for each in positions),
        ended=outputs[-1].finish_reason is FinishReason.STOP,
    )


def _device_type(device: str) -> str:
    from loraplex_server.model.numerics import resolve_numerics

    return resolve_numerics("auto", device).device.type


def _ignore(_: object) -> None:
    """Of the engine's states and statistics nobody asks."""
