"""One server per test process on a tiny base with three adapters; tests that break a server start their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from loraplex_client import AsyncLoraplexClient, LoraplexClient
from tests.integration.live_server import LiveServer, running_server
from tests.integration.tiny_base import save_tiny_adapter, save_tiny_base

ADAPTERS = ("red", "green", "blue")
TIGHT: dict[str, Any] = {
    "max_running": 2,
    "max_waiting": 3,
    "adapter_slots": 2,
    "max_context_tokens": 8192,
    "kv_cache_bytes": 4 * 2**20,  # 256 blocks: one whole context
    "default_deadline_s": 2,
    "max_lora_rank": 16,
    "max_adapter_bytes": 100_000,
    "write_stall_timeout_s": 1,
    "upload_idle_timeout_s": 0.5,
}

NewAdapter = Callable[..., Path]
StartServer = Callable[..., LiveServer]


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a random two-layer Llama."""
    return save_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def packages(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that servers may read adapters from; it holds one PEFT folder for each of ADAPTERS."""
    root = tmp_path_factory.mktemp("packages")
    for seed, name in enumerate(ADAPTERS, start=1):
        save_tiny_adapter(tiny_base, root / name, seed, r=2 * seed)
    return root


@pytest.fixture(scope="session")
def new_adapter(tiny_base: Path, packages: Path) -> NewAdapter:
    """Save another adapter for the tiny base below `packages`: `new_adapter("name", **LoraConfig fields)`."""
    seeds = iter(range(100, 10_000))

    def save(name: str, **fields: Any) -> Path:
        return save_tiny_adapter(tiny_base, packages / name, next(seeds), **fields)

    return save


@pytest.fixture(scope="session")
def server(tiny_base: Path, packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with ADAPTERS registered. Shared: leave it as you found it."""
    folder = tmp_path_factory.mktemp("server")
    with running_server(tiny_base, folder, adapter_roots=packages, training=True) as live:
        register_all(live, packages)
        yield live


@pytest.fixture(scope="session")
def tight_server(
    tiny_base: Path, packages: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A server that is short of everything and reads no folders: its bounds are soon met. Shared as `server` is."""
    with running_server(tiny_base, tmp_path_factory.mktemp("tight-server"), **TIGHT) as live:
        register_all(live, packages)
        yield live


@pytest.fixture
def tight_client(tight_server: LiveServer) -> Iterator[LoraplexClient]:
    with tight_server.client() as made:
        yield made


@pytest.fixture
def client(server: LiveServer) -> Iterator[LoraplexClient]:
    with server.client() as made:
        yield made


@pytest_asyncio.fixture
async def aclient(server: LiveServer) -> AsyncIterator[AsyncLoraplexClient]:
    async with AsyncLoraplexClient(server.target, timeout_s=60) as made:
        yield made


@pytest.fixture
def own_server(tiny_base: Path, packages: Path, tmp_path: Path) -> Iterator[StartServer]:
    """Start a server that the test may break: `own_server(**settings)`. Each has ADAPTERS registered."""
    with ExitStack() as running:

        def start(**settings: Any) -> LiveServer:
            folder = tmp_path / f"server{len(list(tmp_path.glob('server*')))}"
            settings = {"adapter_roots": packages, **settings}
            live = running.enter_context(running_server(tiny_base, folder, **settings))
            register_all(live, packages)
            return live

        yield start


def register_all(server: LiveServer, packages: Path) -> None:
    """Upload each of ADAPTERS."""
    with server.client() as client:
        for name in ADAPTERS:
            client.adapters.upload(name, packages / name)
