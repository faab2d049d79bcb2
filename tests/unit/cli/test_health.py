from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from grpc_health.v1 import health_pb2
from typer.testing import CliRunner, Result

from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.main import app
from tests.unit.client.scripted_server import ScriptedServer, running

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with running(ScriptedServer()) as script:
        yield script


def health(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["health", "--json", *arguments])


def document(result: Result) -> Any:
    return json.loads(result.stdout)


def test_a_serving_server_is_healthy(server: ScriptedServer) -> None:
    result = health("--server", server.target)

    assert result.exit_code == ExitCode.OK
    assert document(result) == {"server": server.target, "serving": True}


def test_a_server_that_loads_or_drains_is_a_failure(server: ScriptedServer) -> None:
    server.health.set("", NOT_SERVING)

    result = health("--server", server.target)

    assert result.exit_code == ExitCode.FAILURE
    assert document(result)["error"]["reason"] == "NOT_SERVING"


@pytest.mark.parametrize("arguments", [(), ("--wait", "0.3")])
def test_where_nothing_answers_the_server_is_unreachable(arguments: tuple[str, ...]) -> None:
    result = health("--server", "127.0.0.1:1", *arguments)

    assert result.exit_code == ExitCode.UNREACHABLE


def test_waiting_ends_when_the_server_begins_to_serve(server: ScriptedServer) -> None:
    server.health.set("", NOT_SERVING)
    threading.Timer(0.3, server.health.set, ("", SERVING)).start()

    assert health("--server", server.target, "--wait", "20").exit_code == ExitCode.OK


def test_waiting_in_vain_for_a_server_that_loads_is_a_failure(server: ScriptedServer) -> None:
    server.health.set("", NOT_SERVING)

    assert health("--server", server.target, "--wait", "0.3").exit_code == ExitCode.FAILURE
