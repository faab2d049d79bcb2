"""An image whose last piece is damaged, on its way into the arena: the first pieces have gone ahead by then."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from loraplex_adapters.errors import AdapterUnavailableError
from loraplex_server.adapter_image import PIECE_BYTES
from loraplex_server.engine.adapter_arena import AdapterArena, AdapterLayout, Placement
from loraplex_server.engine.adapter_residency import AdapterResidency
from loraplex_server.engine.host_cache import HostCache
from tests.unit.engine.test_adapter_image import ImageWorld, bits, damage, wide_world


class WatchedArena(AdapterArena):
    """Remembers what was published."""

    published: list[torch.Tensor]

    def publish(self, slot: int, placement: Placement) -> None:
        super().publish(slot, placement)
        num_elements = self.projection_ends(placement.ranks)[-1]
        self.published.append(self._buffer[placement.start : placement.start + num_elements].clone())


class Loading:
    """A residency over the images of a world, one piece a step."""

    def __init__(self, world: ImageWorld, num_threads: int) -> None:
        self.world = world
        self.arena = WatchedArena(world.num_elements, torch.float32, AdapterLayout(world.spec))
        self.arena.published = []
        cache = HostCache(world.num_elements, torch.float32, pin_memory=False)
        reader = world.reader(num_threads)
        self.residency = AdapterResidency(1, self.arena, cache, reader, copy_bytes=PIECE_BYTES)

    def acquire(self) -> int:
        """As the scheduler does."""
        digest = self.world.package.digest
        self.residency.prefetch(digest)
        deadline_s = time.monotonic() + 60
        while True:
            self.residency.advance()
            slot = self.residency.acquire(digest)
            if slot is not None:
                return slot
            self.residency.copy(is_idle=False)
            assert time.monotonic() < deadline_s
            time.sleep(0.0002)


@pytest.fixture(params=[1, 3])
def load(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[], Loading]]:
    built: list[Loading] = []

    def load() -> Loading:
        built.append(Loading(wide_world(tmp_path), request.param))
        return built[-1]

    yield load
    for loading in built:
        loading.residency.close()


def test_the_package_is_served_in_its_place(load: Callable[[], Loading]) -> None:
    loading = load()
    damage(loading.world.path, "weights changed")

    loading.acquire()

    [weights] = loading.arena.published
    assert bits(weights) == bits(loading.world.expected().flat)


def test_without_a_package_the_request_fails_and_slot_extent_and_host_memory_are_free(
    load: Callable[[], Loading],
) -> None:
    loading = load()
    damage(loading.world.path, "weights changed")
    shutil.rmtree(loading.world.store)

    with pytest.raises(AdapterUnavailableError):
        loading.acquire()

    loading.residency.advance()
    assert loading.arena.published == []
    assert loading.residency.num_slots_used == loading.residency.num_loading == 0
    assert loading.residency.arena_bytes_used == loading.residency.host_bytes_used == 0
    assert not loading.residency.is_busy
