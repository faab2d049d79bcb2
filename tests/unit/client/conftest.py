from __future__ import annotations

from collections.abc import Iterator

import pytest

from loraplex_client import LoraplexClient
from tests.unit.client.scripted_server import ScriptedServer, running


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with running(ScriptedServer()) as script:
        yield script


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[LoraplexClient]:
    with LoraplexClient(server.target, timeout_s=10) as made:
        yield made
