"""Adapters that are read when a test says so, and an engine's residency over them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch

from loraplex_adapters.base_spec import LORA_MODULES, BaseSpec
from loraplex_server.engine.adapter_arena import AdapterArena, AdapterLayout
from loraplex_server.engine.adapter_loader import HostPlace
from loraplex_server.engine.adapter_residency import AdapterResidency

SPEC = BaseSpec("LlamaForCausalLM", "f" * 64, 1, dict.fromkeys(LORA_MODULES, (4, 4)))
UNIT = 8  # elements of an adapter of rank 1 on one module


class Packages:
    """Adapters by digest; reading may be made to wait or to fail."""

    def __init__(self) -> None:
        self.rank_of: dict[str, int] = {}
        self.reads: list[str] = []
        self.failures: dict[str, BaseException] = {}
        self.may_read = threading.Event()
        self.may_read.set()

    def read(self, digest: str, place: HostPlace) -> None:
        self.reads.append(digest)
        assert self.may_read.wait(30)
        if digest in self.failures:
            raise self.failures[digest]
        rank = self.rank_of.get(digest, 1)
        place.begin(rank * UNIT, {(0, "q_proj"): rank}).fill_(float(ord(digest[0])))


def make_arena(num_units: int = 8) -> AdapterArena:
    return AdapterArena(num_units * UNIT, torch.float32, AdapterLayout(SPEC))


Build = Callable[..., AdapterResidency]


def step(residency: AdapterResidency, *, is_idle: bool = False) -> None:
    residency.advance()
    residency.copy(is_idle=is_idle)
    residency.advance()


def wait_until(is_so: Callable[[], object], residency: AdapterResidency) -> None:
    deadline_s = time.monotonic() + 30
    while not is_so():
        step(residency)
        assert time.monotonic() < deadline_s
        time.sleep(0.0005)


def settle(residency: AdapterResidency) -> None:
    """As the engine does between steps, until nothing is under way."""
    step(residency)
    wait_until(lambda: not residency.is_busy, residency)


def acquire(residency: AdapterResidency, digest: str) -> int | None:
    """As the scheduler does, step after step, until nothing but a slot is missing."""
    residency.prefetch(digest)
    deadline_s = time.monotonic() + 30
    num_quiet = 0
    while num_quiet < 2:
        residency.advance()
        slot = residency.acquire(digest)
        if slot is not None:
            residency.cancel_prefetch(digest)
            return slot
        residency.copy(is_idle=False)
        is_quiet = not (residency.is_loading(digest) or residency.is_busy)
        num_quiet = num_quiet + 1 if is_quiet else 0  # one after extents have moved is not the end
        assert time.monotonic() < deadline_s
        time.sleep(0.0005)
    return None


def touch(residency: AdapterResidency, digest: str) -> None:
    assert acquire(residency, digest) is not None
    residency.release(digest)
