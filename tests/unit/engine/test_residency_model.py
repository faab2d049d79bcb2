"""Whatever sequences, operators and the disk do: nobody loses weights in use, and everybody gets a slot."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from loraplex_adapters.base_spec import LORA_MODULES, BaseSpec
from loraplex_adapters.errors import AdapterError, AdapterInvalidError
from loraplex_server.engine.adapter_loader import HostPlace
from loraplex_server.engine.adapter_residency import AdapterResidency
from loraplex_server.engine.host_cache import HostCache
from tests.unit.engine.slow_memory import SlowMemory

SPEC = BaseSpec("LlamaForCausalLM", "f" * 64, 2, dict.fromkeys(LORA_MODULES, (1, 1)))
RANK_OF = {name: 1 + index % 4 for index, name in enumerate("abcdefgh")}
DAMAGED = "bdfg"
BROKEN = "h"
DIGESTS = st.sampled_from("abcdefgh")


def ranks_of(digest: str) -> dict[tuple[int, str], int]:
    return {(0, "q_proj"): RANK_OF[digest], (1, "down_proj"): RANK_OF[digest]}


class Disk:
    """Reads go on by a piece when the test says so. One package is broken, and some images are found damaged late."""

    def __init__(self) -> None:
        self.is_open = False
        self._changed = threading.Condition()
        self._waiting: set[str] = set()  # for a permit to read the next piece

    def read(self, digest: str, place: HostPlace) -> None:
        if digest in DAMAGED:
            self._fill(place, digest, ranks_of("g" if digest == "b" else "b"), math.nan)
            place.give_up()
        if digest == BROKEN:
            self._fill(place, digest, ranks_of(digest), math.nan)
            raise AdapterInvalidError("cut off")
        self._fill(place, digest, ranks_of(digest), float(ord(digest)))

    def permit(self) -> None:
        """One piece of the read that is first by name."""
        with self._changed:
            if self._waiting:
                self._waiting.remove(min(self._waiting))
                self._changed.notify_all()

    def open(self) -> None:
        with self._changed:
            self.is_open = True
            self._changed.notify_all()

    def settle(self, num_reads: Callable[[], int]) -> None:
        """Until each of the reads under way waits for a permit, so that every run goes the same way."""
        deadline_s = time.monotonic() + 30
        while not self.is_open and num_reads() != len(self._waiting):
            assert time.monotonic() < deadline_s
            time.sleep(0)

    def _fill(self, place: HostPlace, digest: str, ranks: dict[tuple[int, str], int], value: float) -> None:
        self._wait(digest)
        rank = next(iter(ranks.values()))
        flat = place.begin(4 * rank, ranks)
        for piece in range(4):
            flat[piece * rank : (piece + 1) * rank] = value
            place.checked((piece + 1) * rank)
            self._wait(digest)

    def _wait(self, digest: str) -> None:
        with self._changed:
            self._waiting.add(digest)
            assert self._changed.wait_for(lambda: self.is_open or digest not in self._waiting, 30)


class ResidencyMachine(RuleBasedStateMachine):
    """Sequences wait for adapters and run with them, as the scheduler has it: the earliest first."""

    @initialize(
        num_slots=st.integers(1, 4),
        arena=st.integers(16, 44),
        host=st.integers(8, 60),
        copy=st.integers(1, 12),
        max_reads=st.integers(1, 3),
    )
    def start(self, num_slots: int, arena: int, host: int, copy: int, max_reads: int) -> None:
        self.memory = SlowMemory(arena, SPEC)
        self.max_ahead = copy
        self.cache = HostCache(host, torch.float32, pin_memory=False)
        self.disk = Disk()
        self.residency = AdapterResidency(
            num_slots, self.memory, self.cache, self.disk.read, copy_bytes=copy * 4, max_reads=max_reads
        )
        self.waiting: list[str] = []
        self.running: list[tuple[str, int]] = []
        self.pinned: set[str] = set()

    @rule(digest=DIGESTS)
    def request(self, digest: str) -> None:
        self.residency.prefetch(digest)
        self.waiting.append(digest)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        self.leave_queue(data.draw(st.integers(0, len(self.waiting) - 1)))

    def leave_queue(self, index: int) -> None:
        digest = self.waiting.pop(index)
        if digest not in self.waiting:
            self.residency.cancel_prefetch(digest)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        digest, _ = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.residency.release(digest)

    @rule(digests=st.sets(DIGESTS, max_size=2))
    def pin(self, digests: set[str]) -> None:
        self.residency.pin(sorted(digests))
        self.pinned = digests

    @rule(digest=DIGESTS)
    def warm(self, digest: str) -> None:
        self.residency.warm(digest)

    @rule(digest=DIGESTS)
    def forget(self, digest: str) -> None:
        if digest not in self.waiting:
            self.residency.forget(digest)
            self.pinned.discard(digest)

    @rule(num_pieces=st.integers(1, 6))
    def read_some(self, num_pieces: int) -> None:
        for _ in range(num_pieces):
            self.disk.permit()
            self.disk_rests()

    @rule(num_copies=st.none() | st.integers(1, 3))
    def land(self, num_copies: int | None) -> None:
        self.memory.land(num_copies)

    @rule(is_idle=st.booleans())
    def step(self, is_idle: bool) -> None:
        before = {digest for digest in self.pinned if digest in self.residency.active_digests}
        self.residency.advance()
        index = 0
        while index < len(self.waiting):
            digest = self.waiting[index]
            try:
                slot = self.residency.acquire(digest)
            except AdapterError:
                self.leave_queue(index)
                continue
            if slot is None:
                index += 1
            else:
                self.running.append((digest, slot))
                self.leave_queue(index)
        ahead = self.memory.num_ahead
        self.residency.copy(is_idle=is_idle)
        assert is_idle or self.memory.num_ahead <= max(ahead, self.max_ahead), "copies pile up"
        assert before <= set(self.residency.active_digests), "a pinned adapter was evicted"
        self.residency.take_events()

    @invariant()
    def disk_rests(self) -> None:
        if hasattr(self, "residency"):
            loads = self.residency._loads
            self.disk.settle(lambda: sum(bool(load.reading and not load.reading.is_over) for load in loads))

    @invariant()
    def running_sequences_keep_their_weights(self) -> None:
        for digest, slot in getattr(self, "running", []):
            weights = self.memory.weights(slot)
            assert weights.numel() == 4 * RANK_OF[digest]
            assert torch.all(weights == ord(digest))

    def teardown(self) -> None:
        if not hasattr(self, "residency"):
            return
        self.disk.open()
        self.pin(set())
        for _ in range(20_000):  # sequences come to their end, so that everybody has a turn
            if not self.waiting and not self.running and not self.residency.is_busy:
                break
            self.step(is_idle=False)
            self.memory.land()
            if self.running:
                digest, _ = self.running.pop(0)
                self.residency.release(digest)
            elif not self.memory.queue:
                threading.Event().wait(0.0002)
        assert not self.waiting, "an adapter never got its slot"
        for digest in RANK_OF:
            self.residency.forget(digest)
        assert self.residency.num_loading == self.residency.num_leases == 0
        assert self.residency.num_slots_used == 0
        assert self.residency.arena_bytes_used == self.residency.host_bytes_used == 0
        assert self.memory.allocate(self.memory.capacity) is not None
        self.residency.close()


TestResidencyMachine = ResidencyMachine.TestCase
TestResidencyMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
