"""Who is resident, who is loading, and whom eviction may take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from loraplex_adapters.base_spec import LORA_MODULES, BaseSpec
from loraplex_adapters.errors import AdapterInvalidError, AdapterTooLargeError, AdapterUnavailableError
from loraplex_server.engine.adapter_arena import AdapterArena, AdapterLayout, PackedAdapter
from loraplex_server.engine.adapter_residency import AdapterResidency

SPEC = BaseSpec("LlamaForCausalLM", "f" * 64, 1, dict.fromkeys(LORA_MODULES, (4, 4)))
UNIT = 8  # elements of an adapter of rank 1 on one module


class Packages:
    """Adapters by digest; reading may be made to wait or to fail."""

    def __init__(self) -> None:
        self.rank_of: dict[str, int] = {}
        self.reads: list[str] = []
        self.failures: dict[str, Exception] = {}
        self.may_read = threading.Event()
        self.may_read.set()

    def read(self, digest: str) -> PackedAdapter:
        self.reads.append(digest)
        assert self.may_read.wait(10)
        if digest in self.failures:
            raise self.failures[digest]
        rank = self.rank_of.get(digest, 1)
        return PackedAdapter(digest, torch.full((rank * UNIT,), float(ord(digest[0]))), {(0, "q_proj"): rank})


@pytest.fixture
def packages() -> Packages:
    return Packages()


def make_arena(num_units: int = 8) -> AdapterArena:
    return AdapterArena(num_units * UNIT, torch.float32, AdapterLayout(SPEC))


@pytest.fixture
def build(packages: Packages) -> Iterator[Callable[..., AdapterResidency]]:
    built: list[AdapterResidency] = []

    def build(num_slots: int = 2, arena: AdapterArena | None = None) -> AdapterResidency:
        built.append(AdapterResidency(num_slots, arena or make_arena(), packages.read))
        return built[-1]

    yield build
    packages.may_read.set()
    for residency in built:
        residency.close()


def wait_until_read(residency: AdapterResidency, digest: str) -> None:
    deadline_s = time.monotonic() + 10
    while residency.is_loading(digest):
        assert time.monotonic() < deadline_s
        time.sleep(0.0005)


def acquire(residency: AdapterResidency, digest: str) -> int | None:
    """As the scheduler does, once the package has been read."""
    residency.prefetch(digest)
    wait_until_read(residency, digest)
    return residency.acquire(digest)


def touch(residency: AdapterResidency, digest: str) -> None:
    assert acquire(residency, digest) is not None
    residency.release(digest)


Build = Callable[..., AdapterResidency]


def test_an_adapter_is_not_there_before_it_was_read(build: Build, packages: Packages) -> None:
    residency = build()
    packages.may_read.clear()

    assert residency.acquire("a") is None
    assert residency.is_loading("a")
    packages.may_read.set()
    wait_until_read(residency, "a")

    assert residency.acquire("a") is not None
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


def test_the_least_recently_used_adapter_is_evicted(build: Build) -> None:
    residency = build(num_slots=2)
    touch(residency, "a")
    touch(residency, "b")
    touch(residency, "a")

    touch(residency, "c")

    assert residency.resident_digests == ["a", "c"]


def test_an_adapter_in_use_is_never_evicted(build: Build) -> None:
    residency = build(num_slots=2)
    acquire(residency, "a")
    touch(residency, "b")

    assert acquire(residency, "c") is not None
    assert residency.resident_digests == ["a", "c"]
    assert acquire(residency, "d") is None
    assert residency.resident_digests == ["a", "c"]
    residency.release("c")
    assert acquire(residency, "d") is not None
    assert residency.resident_digests == ["a", "d"]


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

    assert residency.resident_digests == ["d", "large"]
    assert residency.take_events().evictions == 3


def test_room_that_leases_cut_in_pieces_is_waited_for(build: Build, packages: Packages) -> None:
    residency = build(8, make_arena(4))
    packages.rank_of["large"] = 3
    for digest in "abcd":
        touch(residency, digest)
    acquire(residency, "b")

    assert acquire(residency, "large") is None
    residency.release("b")
    assert residency.acquire("large") is not None


def test_an_adapter_larger_than_the_arena_is_refused_and_evicts_nobody(
    build: Build, packages: Packages
) -> None:
    residency = build(2, make_arena(2))
    packages.rank_of["large"] = 3
    touch(residency, "a")

    with pytest.raises(AdapterTooLargeError, match="96 bytes, more than the whole adapter arena"):
        acquire(residency, "large")

    assert residency.resident_digests == ["a"]
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


def test_forgetting_evicts_an_idle_adapter_at_once(build: Build) -> None:
    residency = build()
    touch(residency, "a")

    residency.forget("a")

    assert residency.resident_digests == []


def test_forgetting_an_adapter_in_use_evicts_it_with_its_last_lease(build: Build) -> None:
    residency = build()
    acquire(residency, "a")
    acquire(residency, "a")

    residency.forget("a")
    residency.release("a")
    assert residency.resident_digests == ["a"]
    residency.release("a")

    assert residency.resident_digests == []


def test_an_adapter_that_is_named_again_is_no_longer_forgotten(build: Build) -> None:
    residency = build()
    acquire(residency, "a")
    residency.forget("a")
    residency.prefetch("a")

    residency.release("a")

    assert residency.resident_digests == ["a"]


@pytest.mark.parametrize("is_read", [False, True])
@pytest.mark.parametrize("drop", ["cancel_prefetch", "forget"])
def test_an_adapter_that_nobody_waits_for_any_more_is_not_kept(
    build: Build, packages: Packages, is_read: bool, drop: str
) -> None:
    residency = build()
    packages.may_read.clear()
    residency.prefetch("a")
    if is_read:
        packages.may_read.set()
        wait_until_read(residency, "a")

    getattr(residency, drop)("a")

    assert residency.num_loading == 0
    packages.may_read.set()
    assert acquire(residency, "a") is not None


def test_events_tell_each_load_and_eviction_once(build: Build) -> None:
    residency = build(num_slots=1)
    for digest in "aab":
        touch(residency, digest)

    events = residency.take_events()

    assert len(events.load_seconds) == 2
    assert all(0 <= seconds < 10 for seconds in events.load_seconds)
    assert events.evictions == 1
    assert residency.take_events().load_seconds == []
