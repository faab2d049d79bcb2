"""Servers that several files of tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import ADAPTERS, register_all
from tests.integration.live_server import LiveServer, running_server


@pytest.fixture(scope="session")
def few_slots_server(
    tiny_base: Path, packages: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """As many slots as ADAPTERS, so that one more must wait or evict; reads URLs of this machine.

    Shared as `server` is.
    """
    settings = {"adapter_roots": packages, "adapter_slots": len(ADAPTERS), "allow_private_hosts": True}
    with running_server(tiny_base, tmp_path_factory.mktemp("few-slots-server"), **settings) as live:
        register_all(live, packages)
        yield live
