"""Adapters on their way into slots as far as a test lets them: a disk it reads from, a memory that copies when told."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from queue import SimpleQueue

import torch

from loraplex_adapters.base_spec import LORA_MODULES, BaseSpec
from loraplex_adapters.errors import AdapterInvalidError
from loraplex_server.engine.adapter_loader import HostPlace
from loraplex_server.engine.adapter_residency import AdapterResidency
from loraplex_server.engine.host_cache import HostCache
from tests.unit.engine.slow_memory import SlowMemory

SPEC = BaseSpec("LlamaForCausalLM", "f" * 64, 1, dict.fromkeys(LORA_MODULES, (4, 4)))
UNIT = 8  # elements of an adapter of rank 1 on one module
UNIT_BYTES = UNIT * 4

Action = Callable[[HostPlace], None]


class Disk:
    """Every read goes as far as the test tells it to."""

    def __init__(self) -> None:
        self._actions: dict[str, SimpleQueue[Action | None]] = defaultdict(SimpleQueue)
        self._flats: dict[str, torch.Tensor] = {}
        self.reading: list[str] = []

    def read(self, digest: str, place: HostPlace) -> None:
        self.reading.append(digest)
        try:
            while (action := self._actions[digest].get(timeout=30)) is not None:
                action(place)
        finally:
            self.reading.remove(digest)

    def begin(self, digest: str, rank: int) -> None:
        def begin(place: HostPlace) -> None:
            self._flats[digest] = place.begin(rank * UNIT, {(0, "q_proj"): rank})

        self._tell(digest, begin)

    def fill(self, digest: str, num_units: int, value: float) -> None:
        """The first units are read and found sound."""

        def fill(place: HostPlace) -> None:
            self._flats[digest][: num_units * UNIT] = value
            place.checked(num_units * UNIT)

        self._tell(digest, fill)

    def damage(self, digest: str) -> None:
        self._tell(digest, lambda place: place.give_up())

    def fail(self, digest: str) -> None:
        def fail(place: HostPlace) -> None:
            raise AdapterInvalidError("cut off")

        self._actions[digest].put(fail)

    def end(self, digest: str) -> None:
        self._actions[digest].put(None)

    def _tell(self, digest: str, action: Action) -> None:
        """And wait until it is done."""
        is_done = threading.Event()

        def act(place: HostPlace) -> None:
            action(place)
            is_done.set()

        self._actions[digest].put(act)
        assert is_done.wait(30)


class LoadWorld:
    """A residency over a slow memory, and the disk behind it."""

    def __init__(
        self, *, num_slots: int = 2, arena_units: int = 8, host_units: int = 16, copy_units: int = 8
    ) -> None:
        self.disk = Disk()
        self.memory = SlowMemory(arena_units * UNIT, SPEC)
        cache = HostCache(host_units * UNIT, torch.float32, pin_memory=False)
        self.residency = AdapterResidency(
            num_slots, self.memory, cache, self.disk.read, copy_bytes=copy_units * UNIT_BYTES, max_reads=2
        )
        self.waiting: list[str] = []

    def request(self, digest: str) -> None:
        self.residency.prefetch(digest)
        self.waiting.append(digest)

    def leave_queue(self, digest: str) -> None:
        self.waiting.remove(digest)
        if digest not in self.waiting:
            self.residency.cancel_prefetch(digest)

    def step(self) -> dict[str, int]:
        """As the engine does; who got a slot."""
        self.residency.advance()
        slots = {}
        for digest in list(self.waiting):
            slot = self.residency.acquire(digest)
            if slot is not None:
                self.leave_queue(digest)
                slots[digest] = slot
        self.residency.copy(is_idle=False)
        return slots

    def step_until(self, is_so: Callable[[], object]) -> None:
        deadline_s = time.monotonic() + 30
        while not is_so():
            self.step()
            assert time.monotonic() < deadline_s
            time.sleep(0.0005)

    def serve(self, digest: str) -> torch.Tensor:
        """The weights that a waiting sequence gets, once all that was told to the disk has happened."""
        deadline_s = time.monotonic() + 30
        while digest not in (slots := self.step()):
            self.memory.land()
            assert time.monotonic() < deadline_s
            time.sleep(0.0005)
        return self.memory.weights(slots[digest])

    def begin(self, digest: str, rank: int) -> None:
        """A request whose read has begun and whose size is known."""
        self.request(digest)
        self.step_until(lambda: digest in self.disk.reading)
        self.disk.begin(digest, rank)

    def load(self, digest: str, rank: int = 1) -> None:
        """Served once, then idle."""
        self.begin(digest, rank)
        self.disk.fill(digest, rank, float(ord(digest)))
        self.disk.end(digest)
        self.serve(digest)
        self.residency.release(digest)

    @property
    def bytes_used(self) -> tuple[int, int]:
        """In the arena, in host memory."""
        return self.residency.arena_bytes_used, self.residency.host_bytes_used
