"""The host cache never passes its size but for what is held, never evicts what is held, and mixes nobody's weights."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from loraplex_server.engine.adapter_arena import PackedAdapter
from loraplex_server.engine.host_cache import HostCache

CAPACITY = 40
DIGESTS = st.sampled_from("abcdefgh")


class HostCacheMachine(RuleBasedStateMachine):
    """Adapters are read, held, released and dropped in any order; each is full of its own number."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = HostCache(CAPACITY, torch.float32, pin_memory=False)
        self.reading: dict[str, torch.Tensor] = {}
        self.held: dict[str, list[PackedAdapter]] = {}
        self.value_of: dict[str, float] = {}
        self.present: set[str] = set()
        self.num_reads = 0

    def gone(self) -> None:
        for digest in self.cache.take_evicted():
            assert digest not in self.reading
            assert not self.held.get(digest), "a held adapter was evicted"
            self.present.discard(digest)

    @rule(digest=DIGESTS, length=st.integers(1, CAPACITY + 10))
    def begin_read(self, digest: str, length: int) -> None:
        if digest in self.cache or digest in self.reading:
            return
        self.reading[digest] = self.cache.reserve(digest, length)
        self.num_reads += 1
        self.value_of[digest] = float(self.num_reads)
        self.reading[digest].fill_(self.value_of[digest])
        self.present.add(digest)
        self.gone()

    @precondition(lambda self: self.reading)
    @rule(data=st.data(), fails=st.booleans())
    def end_read(self, data: st.DataObject, fails: bool) -> None:
        digest = data.draw(st.sampled_from(sorted(self.reading)))
        flat = self.reading.pop(digest)
        if fails:
            self.cache.release(digest)
            assert digest not in self.cache
        else:
            packed = PackedAdapter(digest, flat, {})
            self.cache.complete(packed)
            self.held[digest] = [packed]
        self.gone()

    @rule(digest=DIGESTS)
    def hold(self, digest: str) -> None:
        packed = self.cache.hold(digest)
        assert (packed is None) == (digest not in self.present or digest in self.reading)
        if packed is not None:
            self.held.setdefault(digest, []).append(packed)

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(d for d, holds in self.held.items() if holds)))
        self.held[digest].pop()
        self.cache.release(digest)
        self.gone()

    @rule(digest=DIGESTS)
    def drop(self, digest: str) -> None:
        self.cache.drop(digest)
        if not self.held.get(digest) and digest not in self.reading:
            assert digest not in self.cache
        self.gone()

    @invariant()
    def nobody_holds_what_belongs_to_another(self) -> None:
        for digest, holds in self.held.items():
            for packed in holds:
                assert torch.all(packed.flat == self.value_of[digest])
        for digest, flat in self.reading.items():
            assert torch.all(flat == self.value_of[digest])

    @invariant()
    def what_is_not_held_fits_the_cache(self) -> None:
        held = sum(holds[0].flat.nbytes for holds in self.held.values() if holds)
        held += sum(flat.nbytes for flat in self.reading.values())
        assert self.cache.bytes_used <= CAPACITY * 4 + held
        if held <= 0:
            assert self.cache.bytes_used <= CAPACITY * 4

    def teardown(self) -> None:
        for digest in self.reading:
            self.cache.release(digest)
        for digest, holds in self.held.items():
            for _ in holds:
                self.cache.release(digest)
        for digest in "abcdefgh":
            self.cache.drop(digest)
        assert self.cache.bytes_used == 0
        assert self.cache.reserve("last", CAPACITY).untyped_storage().nbytes() == CAPACITY * 4


TestHostCacheMachine = HostCacheMachine.TestCase
TestHostCacheMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def fill(cache: HostCache, digest: str, length: int) -> None:
    cache.complete(PackedAdapter(digest, cache.reserve(digest, length), {}))
    cache.release(digest)


def test_the_least_recently_used_adapter_goes_first() -> None:
    cache = HostCache(30, torch.float32, pin_memory=False)
    for digest in "abc":
        fill(cache, digest, 10)
    assert cache.hold("a") is not None
    cache.release("a")

    fill(cache, "d", 10)

    assert cache.take_evicted() == ["b"]
    assert cache.bytes_used == 120


def test_nobody_goes_for_an_adapter_that_would_not_fit_anyway() -> None:
    cache = HostCache(30, torch.float32, pin_memory=False)
    for digest in "abc":
        fill(cache, digest, 10)
    assert cache.hold("b") is not None  # in the middle

    assert cache.reserve("large", 25).numel() == 25

    assert cache.take_evicted() == []


def test_an_adapter_larger_than_the_cache_has_a_buffer_of_its_own_while_it_is_held() -> None:
    cache = HostCache(30, torch.float32, pin_memory=False)
    cache.complete(PackedAdapter("large", cache.reserve("large", 31), {}))
    assert "large" in cache
    assert cache.bytes_used == 31 * 4

    cache.release("large")

    assert "large" not in cache
    assert cache.bytes_used == 0
