from __future__ import annotations

import inspect
import subprocess
import sys
import threading

import pytest
from grpc_health.v1 import health_pb2

from loraplex_client import AsyncLoraplexClient, LoraplexClient, UnavailableError
from loraplex_client.adapter_calls import AdapterCalls
from loraplex_client.async_adapter_calls import AsyncAdapterCalls
from loraplex_client.async_training_calls import AsyncTrainingCalls
from loraplex_client.training_calls import TrainingCalls
from tests.unit.client.scripted_server import ScriptedServer

HEAVY = ("torch", "transformers", "pydantic", "typer", "rich", "loraplex_server", "loraplex_adapters")


def test_importing_the_client_imports_nothing_heavy() -> None:
    script = f"import sys, loraplex_client; print([m for m in {HEAVY!r} if m in sys.modules])"

    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"


def test_leaving_a_stream_cancels_it_on_the_server(client: LoraplexClient, server: ScriptedServer) -> None:
    server.endless = True
    with client.stream("x") as stream:
        next(stream)

    assert server.stream_cancelled.wait(5)


async def test_leaving_an_async_stream_cancels_it_on_the_server(server: ScriptedServer) -> None:
    server.endless = True
    async with AsyncLoraplexClient(server.target) as client:
        async with client.stream("x") as stream:
            await anext(stream)

        assert server.stream_cancelled.wait(5)


def test_waiting_ends_when_the_server_begins_to_serve(client: LoraplexClient, server: ScriptedServer) -> None:
    server.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert not client.is_ready()
    serving = threading.Timer(0.2, server.health.set, ("", health_pb2.HealthCheckResponse.SERVING))
    serving.start()

    client.wait_until_ready(timeout_s=5)

    assert client.is_ready()


def test_waiting_in_vain_says_where_and_how_long() -> None:
    with (
        LoraplexClient("127.0.0.1:1") as client,
        pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1 within 0\.3 s"),
    ):
        client.wait_until_ready(timeout_s=0.3)


@pytest.mark.parametrize(
    ("sync", "asynchronous"),
    [
        (LoraplexClient, AsyncLoraplexClient),
        (AdapterCalls, AsyncAdapterCalls),
        (TrainingCalls, AsyncTrainingCalls),
    ],
)
def test_both_clients_offer_the_same_calls(sync: type, asynchronous: type) -> None:
    def calls(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(member).parameters)
            for name, member in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    assert calls(sync) == calls(asynchronous)
