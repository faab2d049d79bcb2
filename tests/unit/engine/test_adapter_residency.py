"""Who is active, who is on the way, whom eviction may take, and what operators and messages are told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from loraplex_adapters.base_spec import LORA_MODULES, BaseSpec
from loraplex_adapters.errors import AdapterInvalidError, AdapterTooLargeError, AdapterUnavailableError
from loraplex_server.engine import adapter_residency
from loraplex_server.engine.adapter_arena import AdapterArena, AdapterLayout
from loraplex_server.engine.adapter_loader import HostPlace
from loraplex_server.engine.adapter_residency import AdapterResidency
from loraplex_server.engine.host_cache import HostCache
from loraplex_server.errors import SequenceFailedError

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


@pytest.fixture
def packages() -> Packages:
    return Packages()


def make_arena(num_units: int = 8) -> AdapterArena:
    return AdapterArena(num_units * UNIT, torch.float32, AdapterLayout(SPEC))


@pytest.fixture
def build(packages: Packages) -> Iterator[Callable[..., AdapterResidency]]:
    built: list[AdapterResidency] = []

    def build(
        num_slots: int = 2, arena: AdapterArena | None = None, *, host_units: int = 16, copy_units: int = 8
    ) -> AdapterResidency:
        cache = HostCache(host_units * UNIT, torch.float32, pin_memory=False)
        memory = arena or make_arena()
        built.append(
            AdapterResidency(num_slots, memory, cache, packages.read, copy_bytes=copy_units * UNIT * 4)
        )
        return built[-1]

    yield build
    packages.may_read.set()
    for residency in built:
        residency.close()


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


def test_an_adapter_is_not_there_before_it_was_read(build: Build, packages: Packages) -> None:
    residency = build()
    packages.may_read.clear()

    assert residency.acquire("a") is None
    assert residency.is_loading("a")
    packages.may_read.set()

    assert acquire(residency, "a") is not None
    assert not residency.is_loading("a")


def test_first_requests_for_an_adapter_at_once_read_it_once(build: Build, packages: Packages) -> None:
    residency = build()
    packages.may_read.clear()
    for _ in range(5):
        residency.prefetch("a")
        assert residency.acquire("a") is None
    packages.may_read.set()

    slots = {acquire(residency, "a") for _ in range(5)}

    assert len(slots) == 1
    assert packages.reads == ["a"]
    assert residency.num_leases == 5


def test_a_copy_takes_no_more_of_a_step_than_it_may(build: Build, packages: Packages) -> None:
    packages.rank_of = {"a": 5}
    residency = build(copy_units=2)
    residency.prefetch("a")
    wait_until(lambda: not residency.is_loading("a"), residency)

    for _ in range(3):
        assert residency.acquire("a") is None
        residency.advance()
        assert residency.acquire("a") is None
        residency.copy(is_idle=False)
    residency.advance()

    assert residency.acquire("a") is not None


def test_copies_go_on_however_little_a_step_may_take(build: Build) -> None:
    touch(build(copy_units=0), "a")


def test_an_idle_engine_copies_all_at_once(build: Build, packages: Packages) -> None:
    """LoRAX #395: one request after another waited long for its adapter, until a burst of them came."""
    packages.rank_of = {"a": 5}
    residency = build(copy_units=1)
    residency.prefetch("a")
    wait_until(lambda: not residency.is_loading("a"), residency)

    assert residency.acquire("a") is None
    residency.copy(is_idle=True)
    residency.advance()

    assert residency.acquire("a") is not None


def test_a_slot_holds_the_weights_of_its_adapter(build: Build, packages: Packages) -> None:
    arena = make_arena()
    residency = build(3, arena)
    packages.rank_of = {"a": 2, "b": 1, "c": 3}
    slots = {digest: acquire(residency, digest) for digest in "abc"}

    assert len(set(slots.values())) == 3
    for digest, slot in slots.items():
        assert slot is not None
        projection = arena.layers_of_slot(slot)[0]["qkv"]
        assert projection.a.shape == (4, packages.rank_of[digest])
        assert torch.all(projection.a == ord(digest))
        assert torch.all(projection.parts[0].b == ord(digest))


def test_the_least_recently_used_adapter_is_evicted_and_comes_back_from_the_host(
    build: Build, packages: Packages
) -> None:
    residency = build(num_slots=2)
    for digest in "aba":
        touch(residency, digest)

    touch(residency, "c")
    assert residency.active_digests == ["a", "c"]
    assert residency.tier("b") == "host"
    touch(residency, "b")

    assert packages.reads == ["a", "b", "c"]


def test_an_adapter_that_is_on_the_host_waits_for_nobody_s_read(build: Build, packages: Packages) -> None:
    residency = build(num_slots=1)
    touch(residency, "a")
    touch(residency, "b")
    packages.may_read.clear()
    residency.prefetch("slow")

    touch(residency, "a")

    assert residency.is_loading("slow")


def test_an_adapter_that_left_the_host_too_is_read_again(build: Build, packages: Packages) -> None:
    residency = build(num_slots=1, host_units=2)
    for digest in "abca":
        touch(residency, digest)

    assert packages.reads == ["a", "b", "c", "a"]


def test_an_adapter_larger_than_the_host_cache_is_served(build: Build, packages: Packages) -> None:
    packages.rank_of["large"] = 6
    residency = build(host_units=2)

    touch(residency, "large")
    touch(residency, "a")

    assert residency.host_bytes_used == UNIT * 4
    assert residency.active_digests == ["large", "a"]


def test_no_more_is_read_ahead_than_the_host_cache_holds(build: Build, packages: Packages) -> None:
    residency = build(num_slots=1, host_units=3)
    acquire(residency, "z")
    for digest in "abcdefgh":
        residency.prefetch(digest)

    for _ in range(200):
        step(residency)
        time.sleep(0.0005)

    assert packages.reads == ["z", "a", "b", "c"]
    assert residency.host_bytes_used == 3 * UNIT * 4
    residency.release("z")
    for digest in "abcdefgh":
        touch(residency, digest)
    assert packages.reads == list("zabcdefgh")


def test_an_adapter_in_use_is_never_evicted(build: Build) -> None:
    residency = build(num_slots=2)
    acquire(residency, "a")
    touch(residency, "b")

    assert acquire(residency, "c") is not None
    assert acquire(residency, "d") is None
    assert residency.active_digests == ["a", "c"]
    residency.release("c")
    assert acquire(residency, "d") is not None
    assert residency.active_digests == ["a", "d"]


def test_two_leases_hold_an_adapter_until_both_are_back(build: Build) -> None:
    residency = build(num_slots=1)
    acquire(residency, "a")
    acquire(residency, "a")
    residency.release("a")

    assert acquire(residency, "b") is None
    residency.release("a")
    assert acquire(residency, "b") is not None


def test_as_many_idle_adapters_go_as_the_new_one_needs_room(build: Build, packages: Packages) -> None:
    residency = build(8, make_arena(4))
    packages.rank_of["large"] = 3
    for digest in "abcd":
        touch(residency, digest)

    touch(residency, "large")

    assert residency.active_digests == ["d", "large"]
    assert residency.take_events().evictions == 3


def test_room_that_an_adapter_in_use_cuts_in_pieces_is_moved_together(
    build: Build, packages: Packages
) -> None:
    arena = make_arena(4)
    residency = build(8, arena)
    packages.rank_of["large"] = 3
    for digest in "abcd":
        touch(residency, digest)
    slot = acquire(residency, "b")
    assert slot is not None

    assert acquire(residency, "large") is not None

    assert residency.active_digests == ["b", "large"]
    assert torch.all(arena.layers_of_slot(slot)[0]["qkv"].a == ord("b"))
    assert residency.take_events().compacted_bytes == UNIT * 4


def test_no_more_is_moved_in_a_step_than_steps_can_bear(
    build: Build, packages: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_residency, "_MAX_MOVED_BYTES", UNIT * 4)
    residency = build(8, make_arena(5))
    packages.rank_of["large"] = 3
    for digest in "abcde":
        touch(residency, digest)
    for digest in "bd":
        acquire(residency, digest)
    residency.take_events()
    residency.prefetch("large")
    wait_until(lambda: not residency.is_loading("large"), residency)

    moved = []
    for is_idle in (False, True, True):
        residency.advance()
        assert residency.acquire("large") is None
        residency.copy(is_idle=is_idle)
        moved.append(residency.take_events().compacted_bytes)
        assert residency.is_busy, "an idle engine would sleep"

    assert moved == [UNIT * 4, UNIT * 4, 0]
    assert acquire(residency, "large") is not None


def test_an_adapter_larger_than_the_arena_is_refused_and_evicts_nobody(
    build: Build, packages: Packages
) -> None:
    residency = build(2, make_arena(2))
    packages.rank_of["large"] = 3
    touch(residency, "a")

    with pytest.raises(AdapterTooLargeError, match="96 bytes, more than the whole adapter arena"):
        acquire(residency, "large")

    assert residency.active_digests == ["a"]
    assert residency.num_loading == 0


@pytest.mark.parametrize("failure", [AdapterInvalidError("cut off"), OSError("no disk")])
def test_a_package_that_cannot_be_read_is_tried_again_by_the_next_request(
    build: Build, packages: Packages, failure: Exception
) -> None:
    residency = build()
    packages.failures["a"] = failure
    with pytest.raises(AdapterUnavailableError, match="stored package cannot be"):
        acquire(residency, "a")
    del packages.failures["a"]

    assert acquire(residency, "a") is not None


class Panic(BaseException):
    """As Rust's panics come to Python: no Exception."""


@pytest.mark.parametrize(
    "failure", [MemoryError(), RuntimeError("no pinned memory"), KeyError("a bug"), Panic("in native code")]
)
def test_a_load_that_failed_for_no_fault_of_the_package_fails_for_who_waits_and_is_tried_again(
    build: Build, packages: Packages, failure: BaseException
) -> None:
    residency = build()
    packages.failures["a"] = failure
    packages.may_read.clear()
    residency.warm("a")
    residency.prefetch("a")
    packages.may_read.set()

    with pytest.raises(SequenceFailedError, match="could not load the adapter"):
        acquire(residency, "a")

    assert [told.reason for told in residency.take_events().failures] == ["SEQUENCE_FAILED"]
    assert residency.num_slots_used == residency.num_loading == residency.host_bytes_used == 0
    del packages.failures["a"]
    assert acquire(residency, "a") is not None


def test_forgetting_evicts_an_idle_adapter_at_once_from_slot_and_host(build: Build) -> None:
    residency = build()
    touch(residency, "a")

    residency.forget("a")

    assert residency.num_slots_used == 0
    assert residency.host_bytes_used == 0
    assert residency.tier("a") == "disk"


def test_forgetting_an_adapter_in_use_evicts_it_with_its_last_lease(build: Build) -> None:
    residency = build()
    acquire(residency, "a")
    acquire(residency, "a")

    residency.forget("a")
    residency.release("a")
    assert residency.active_digests == ["a"]
    residency.release("a")

    assert residency.active_digests == []


def test_an_adapter_that_is_named_again_is_no_longer_forgotten(build: Build) -> None:
    residency = build()
    acquire(residency, "a")
    residency.forget("a")
    residency.prefetch("a")

    residency.release("a")

    assert residency.active_digests == ["a"]


def test_forgetting_an_adapter_on_its_way_leaves_nothing_of_it(build: Build, packages: Packages) -> None:
    packages.rank_of["a"] = 4
    residency = build(copy_units=1)
    packages.may_read.clear()
    residency.prefetch("a")
    residency.forget("a")
    packages.may_read.set()
    settle(residency)
    assert residency.host_bytes_used == 0

    residency.prefetch("a")
    wait_until(lambda: not residency.is_loading("a"), residency)
    assert residency.acquire("a") is None
    residency.copy(is_idle=False)
    residency.forget("a")
    settle(residency)

    assert residency.num_slots_used == residency.arena_bytes_used == residency.host_bytes_used == 0


def test_an_adapter_on_its_way_that_is_named_again_is_no_longer_forgotten(
    build: Build, packages: Packages
) -> None:
    residency = build()
    packages.may_read.clear()
    residency.prefetch("a")
    residency.forget("a")
    residency.prefetch("a")
    packages.may_read.set()

    touch(residency, "a")

    assert residency.active_digests == packages.reads == ["a"]
    assert residency.host_bytes_used == UNIT * 4


@pytest.mark.parametrize("is_read", [False, True])
@pytest.mark.parametrize("drop", ["cancel_prefetch", "forget"])
def test_an_adapter_that_nobody_waits_for_any_more_is_not_waited_for(
    build: Build, packages: Packages, is_read: bool, drop: str
) -> None:
    residency = build()
    packages.may_read.clear()
    residency.prefetch("a")
    if is_read:
        packages.may_read.set()
        wait_until(lambda: not residency.is_loading("a"), residency)

    getattr(residency, drop)("a")

    assert residency.num_loading == 0
    packages.may_read.set()
    assert acquire(residency, "a") is not None


def test_warming_loads_into_a_slot_without_a_sequence(build: Build) -> None:
    residency = build()

    residency.warm("a")
    settle(residency)

    assert residency.active_digests == ["a"]
    assert residency.num_loading == 0


def test_warming_waits_while_every_slot_is_in_use_and_holds_no_host_memory(
    build: Build, packages: Packages
) -> None:
    residency = build(num_slots=1, host_units=1)
    acquire(residency, "a")
    residency.warm("b")
    settle(residency)
    assert residency.num_loading == 1
    residency.prefetch("c")
    wait_until(lambda: packages.reads == ["a", "b", "c"], residency)
    residency.cancel_prefetch("c")
    settle(residency)
    assert packages.reads == ["a", "b", "c"]  # nothing is read for which there is no slot
    assert residency.tier("b") == "disk"

    residency.release("a")
    settle(residency)

    assert residency.active_digests == ["b"]


def test_what_a_sequence_waits_for_is_read_before_what_is_warmed_or_pinned(
    build: Build, packages: Packages
) -> None:
    residency = build(num_slots=4)
    packages.may_read.clear()
    residency.prefetch("a")
    residency.warm("warmed")
    residency.pin(["pinned"])
    residency.prefetch("b")
    packages.may_read.set()
    wait_until(lambda: len(packages.reads) == 4, residency)

    assert packages.reads[:2] == ["a", "b"]
    assert sorted(packages.reads[2:]) == ["pinned", "warmed"]


def test_a_warmed_adapter_takes_no_slot_of_one_that_a_sequence_waits_for(build: Build) -> None:
    residency = build(num_slots=1)
    touch(residency, "a")
    residency.prefetch("a")

    residency.warm("b")
    settle(residency)

    assert residency.active_digests == ["a"]
    residency.cancel_prefetch("a")
    settle(residency)
    assert residency.active_digests == ["b"]


def test_an_adapter_that_came_before_its_sequence_could_begin_stays_for_it(build: Build) -> None:
    residency = build(num_slots=1)
    residency.prefetch("a")
    wait_until(lambda: not residency.is_loading("a"), residency)
    residency.bring("a")
    wait_until(lambda: residency.tier("a") == "slot", residency)

    residency.warm("b")
    settle(residency)

    assert residency.active_digests == ["a"]


def test_a_warmed_adapter_waits_behind_one_that_a_sequence_waits_for(build: Build) -> None:
    residency = build(num_slots=1)
    acquire(residency, "a")
    residency.warm("warmed")
    settle(residency)
    assert acquire(residency, "b") is None
    residency.release("a")

    residency.advance()

    assert residency.num_slots_used == 1
    assert acquire(residency, "b") is not None
    assert residency.take_events().evictions == 1


def test_what_was_read_for_an_operator_is_not_read_again_for_a_sequence(
    build: Build, packages: Packages
) -> None:
    residency = build(num_slots=1)
    acquire(residency, "a")
    residency.warm("b")
    settle(residency)

    assert acquire(residency, "b") is None
    residency.release("a")
    assert acquire(residency, "b") is not None

    assert packages.reads == ["a", "b"]


def test_pinned_adapters_are_loaded_and_stay_until_they_are_no_longer_pinned(build: Build) -> None:
    residency = build(num_slots=2)
    residency.pin(["a"])
    settle(residency)
    for digest in "bcd":
        touch(residency, digest)
    assert residency.active_digests == ["a", "d"]

    residency.pin([])
    touch(residency, "e")
    touch(residency, "f")

    assert residency.active_digests == ["e", "f"]


def test_an_adapter_that_is_pinned_is_no_longer_forgotten(build: Build) -> None:
    residency = build()
    acquire(residency, "a")
    residency.forget("a")
    residency.pin(["a"])

    residency.release("a")

    assert residency.active_digests == ["a"]


def test_an_adapter_that_is_forgotten_is_no_longer_pinned_when_it_comes_back(build: Build) -> None:
    residency = build(num_slots=1)
    residency.pin(["a"])
    settle(residency)
    residency.forget("a")
    assert not residency.is_pinned("a")
    assert residency.active_digests == []

    touch(residency, "a")
    touch(residency, "b")

    assert residency.active_digests == ["b"]


def test_what_is_no_longer_pinned_before_it_came_does_not_come(build: Build) -> None:
    residency = build(num_slots=1)
    acquire(residency, "a")
    residency.pin(["b"])
    settle(residency)
    assert residency.num_loading == residency.is_pin_waiting == 1

    residency.pin([])

    assert residency.num_loading == residency.is_pin_waiting == 0
    residency.release("a")
    settle(residency)
    assert residency.active_digests == ["a"]


def test_what_pinned_adapters_leave_no_room_for_fails_at_once(build: Build, packages: Packages) -> None:
    residency = build(num_slots=1)
    residency.pin(["a", "b"])
    settle(residency)

    with pytest.raises(AdapterTooLargeError, match="beside the pinned adapters"):
        acquire(residency, "c")

    assert residency.active_digests == ["a"]
    assert [(f.digest, f.reason) for f in residency.take_events().failures] == [("b", "ADAPTER_TOO_LARGE")]
    assert not residency.is_pin_waiting


def test_a_pinned_adapter_that_can_never_come_keeps_nobody_waiting(build: Build, packages: Packages) -> None:
    residency = build(2, make_arena(2))
    packages.rank_of["large"] = 3
    residency.prefetch("large")
    residency.pin(["large"])
    wait_until(lambda: not residency.is_loading("large"), residency)
    step(residency)

    assert not residency.is_pin_waiting
    with pytest.raises(AdapterTooLargeError):
        acquire(residency, "large")


def test_a_pinned_adapter_waits_for_a_slot_in_use_and_says_so(build: Build) -> None:
    residency = build(num_slots=1)
    acquire(residency, "a")
    residency.pin(["b"])
    settle(residency)
    assert residency.is_pin_waiting

    residency.release("a")
    settle(residency)

    assert residency.active_digests == ["b"]
    assert not residency.is_pin_waiting


def test_a_pinned_or_warmed_adapter_that_cannot_be_read_is_told_once(
    build: Build, packages: Packages
) -> None:
    residency = build()
    packages.failures["a"] = packages.failures["b"] = AdapterInvalidError("cut off")
    residency.pin(["a"])
    residency.warm("b")

    settle(residency)

    failures = residency.take_events().failures
    assert [failure.digest for failure in failures] == ["a", "b"]
    assert all("cut off" in failure.message for failure in failures)
    assert residency.num_loading == 0
    assert not residency.has_news


def test_events_tell_each_read_copy_eviction_and_move_once(build: Build) -> None:
    residency = build(num_slots=1)
    for digest in "aab":
        touch(residency, digest)

    events = residency.take_events()

    assert len(events.read_seconds) == len(events.copy_seconds) == 2
    assert events.evictions == 1
    assert {move.digest: move.tier for move in events.moves} == {"a": "host", "b": "slot"}
    assert all(move.read_seconds > 0 and move.copy_seconds > 0 for move in events.moves)
    assert residency.take_events().moves == []
    residency.forget("b")
    assert residency.has_news
    assert [move.tier for move in residency.take_events().moves] == ["disk"]


def test_an_adapter_that_leaves_the_host_cache_is_told_to_be_on_disk(build: Build) -> None:
    residency = build(num_slots=1, host_units=1)
    touch(residency, "a")
    residency.take_events()

    touch(residency, "b")

    moves = {move.digest: move.tier for move in residency.take_events().moves}
    assert moves == {"a": "disk", "b": "slot"}
