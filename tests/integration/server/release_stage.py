"""A server that is short of slots and host memory, and packages whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from loraplex_client import PlannedAdapters
from tests.integration.live_server import LiveServer
from tests.integration.server.release_accounts import Accounts, Expected
from tests.integration.server.running_stream import RunningStream
from tests.integration.streams import PROMPT
from tests.support.release_model import ModelRegistry

RANKS = (4, 8, 16, 32, 64, 128)  # of the packages; see `release_accounts`
RANK_BYTES = 7424  # of one rank on all linear modules of the tiny base
NUM_PACKAGES = len(RANKS)
NUM_KEPT = 4  # packages that an adapter of the stage refers to; the others come and go with the course
SLOTS = 3  # fewer than these, so that requests evict
ARENA_RANKS = 320  # room for the largest beside any two pinned ones
HOST_CACHE_BYTES = 2**20  # of 141 ranks: it evicts as well
LONG_TOKENS = 1000  # of a stream that is to run while something changes
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "include_token_ids": True}
ADAPTERS = ("one", "team/two")  # of the courses
SETTINGS = {
    "adapter_slots": SLOTS,
    "adapter_arena_bytes": ARENA_RANKS * RANK_BYTES,
    "host_cache_bytes": HOST_CACHE_BYTES,
}
SHORT: dict[str, Any] = {**GREEDY, "max_tokens": 6}


class Stage:
    """The server that all courses use, one after another, and what each package answers."""

    def __init__(self, start: Callable[[], LiveServer], folders: list[Path]) -> None:
        self._start = start
        self.folders = folders
        self.threads = ThreadPoolExecutor()
        self._begin()
        [of_rank_1] = self.client.adapters.plan([PlannedAdapters(rank=1)]).groups
        assert of_rank_1.bytes_each == RANK_BYTES
        self.digests: list[str] = []
        for number, folder in enumerate(folders):
            self.digests.append(self.client.adapters.upload(f"reference/p{number}", folder).digest)
        streams = [self.stream(f"reference/p{number}") for number in range(NUM_PACKAGES)]
        for stream in streams:
            stream.await_end()
        self.answers = [tuple(stream.token_ids) for stream in streams]
        assert len({answer[: SHORT["max_tokens"]] for answer in self.answers}) == NUM_PACKAGES, (
            "two packages answer alike; no test could tell them apart"
        )
        for number in range(NUM_KEPT, NUM_PACKAGES):
            self.client.adapters.delete(f"reference/p{number}")

    def stream(self, adapter: str) -> RunningStream:
        return RunningStream(
            self.client, self.threads, PROMPT, adapter=adapter, **GREEDY, max_tokens=LONG_TOKENS
        )

    def check_accounts(self, model: ModelRegistry) -> None:
        """Of an idle server."""
        referred = set(range(NUM_KEPT)).union(*(adapter.versions for adapter in model.adapters.values()))
        pinned = {
            package
            for adapter in model.adapters.values()
            if adapter.is_pinned
            for package in adapter.served(None)
        }
        digest_of_bytes = {rank * RANK_BYTES: d for rank, d in zip(RANKS, self.digests, strict=True)}
        expected = Expected(
            frozenset(self.digests[each] for each in referred),
            frozenset(self.digests[each] for each in pinned),
        )
        Accounts(self.server, self.client, digest_of_bytes).check(expected)

    def restart(self, *, kill: bool) -> None:
        """Another server process on the same data."""
        self.client.close()
        if kill:
            self.server.kill()
        else:
            self.server.stop()
        self._begin()

    def _begin(self) -> None:
        self.server = self._start()
        self.client = self.server.client(timeout_s=120)
        self.num_shadowed = dict.fromkeys(ADAPTERS, 0)  # requests with a shadow
