"""A server that cannot start says why in one line, and ends with a code that scripts can read."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import grpc

from loraplex_cli.exit_codes import ExitCode
from loraplex_client import LoraplexClient
from tests.integration.live_server import LiveServer, free_port, start_server
from tests.integration.raw_calls import failure_of, raw_channel
from tests.integration.streams import GREEDY, PROMPT
from tests.integration.wild_messages import METHODS


def refusal(base: Path | str, folder: Path, **settings: Any) -> tuple[int, str]:
    """Exit code and log of a server that does not become ready."""
    settings = {"data_dir": folder / "data", **settings}
    server = start_server(base, log_file=folder / "server.log", **settings)
    assert server.process.stdout is not None
    line = server.process.stdout.readline()
    assert not line or "error" in json.loads(line)
    code = server.await_exit()
    server.stop()  # checks that the log holds no traceback
    return code, server.log()


def test_a_second_server_on_a_port_says_so_and_leaves_the_first_alone(
    server: LiveServer, client: LoraplexClient, tiny_base: Path, tmp_path: Path
) -> None:
    port = server.target.rpartition(":")[2]

    code, log = refusal(tiny_base, tmp_path, port=port)

    assert code == ExitCode.FAILURE
    assert f"cannot listen on 127.0.0.1:{port}" in log
    assert "PORT_IN_USE" in log
    assert client.generate(PROMPT, **GREEDY).usage.completion_tokens == 24


def test_a_taken_metrics_port_is_told_too(server: LiveServer, tiny_base: Path, tmp_path: Path) -> None:
    port = server.metrics_url.rpartition(":")[2].partition("/")[0]

    code, log = refusal(tiny_base, tmp_path, metrics_port=port)

    assert code == ExitCode.FAILURE
    assert f"cannot listen on 127.0.0.1:{port}" in log
    assert "metrics_port" in log
    assert "PORT_IN_USE" in log


def test_a_host_that_is_not_of_this_machine_is_told(tiny_base: Path, tmp_path: Path) -> None:
    code, log = refusal(tiny_base, tmp_path, host="192.0.2.1", metrics_port="null")

    assert code == ExitCode.BAD_INPUT
    assert "cannot listen on 192.0.2.1: no network interface of this machine has that address" in log
    assert "add_port" not in log


def test_a_data_folder_has_one_server(server: LiveServer, tiny_base: Path, tmp_path: Path) -> None:
    code, log = refusal(tiny_base, tmp_path, data_dir=server.data_dir)

    assert code == ExitCode.FAILURE
    assert "another server uses the data folder" in log


def test_an_unsupported_base_is_told_with_those_that_are_supported(tiny_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"]}))

    code, log = refusal(base, tmp_path)

    assert code == ExitCode.BAD_INPUT
    assert "GPT2LMHeadModel" in log
    assert "LlamaForCausalLM" in log


def test_weights_that_are_not_those_of_the_config_are_told_by_the_engine(
    tiny_base: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "hidden_size": 128, "head_dim": 16}))

    code, log = refusal(base, tmp_path)

    assert code != 0
    assert "model.embed_tokens" in log


def test_a_registry_that_is_no_database_is_told(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "registry.sqlite3").write_bytes(b"not a database" * 100)

    code, log = refusal(tiny_base, tmp_path)

    assert code == ExitCode.FAILURE
    assert "the registry cannot be used" in log
    assert "file is not a database" in log


def test_a_registry_written_by_another_program_is_told(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with sqlite3.connect(tmp_path / "data" / "registry.sqlite3") as database:
        database.execute("create table adapters (whatever integer)")
    database.close()

    code, log = refusal(tiny_base, tmp_path)

    assert code == ExitCode.FAILURE
    assert "another program's tables" in log
    with sqlite3.connect(tmp_path / "data" / "registry.sqlite3") as database:
        assert database.execute("select count(*) from adapters").fetchone() == (0,)  # untouched
    database.close()


def test_while_the_base_loads_requests_are_unavailable_with_a_time_to_come_back(
    tiny_base: Path, tmp_path: Path
) -> None:
    server = start_server(tiny_base, tmp_path / "data", tmp_path / "log", port=free_port())
    server.await_log("listening")

    with raw_channel(server) as channel:
        for method in METHODS:
            if method.path.startswith("/loraplex.") and not method.path.endswith("/Drain"):
                call: Any = getattr(channel, method.kind)(method.path)
                request: Any = iter([b""]) if method.descriptor.client_streaming else b""
                failure = failure_of(lambda call=call, request=request: list(call(request)))  # type: ignore[misc]
                assert (method.path, failure.code) == (method.path, grpc.StatusCode.UNAVAILABLE)
                assert failure.reason == "ENGINE_UNAVAILABLE"
                assert failure.retry_after_s is not None
    with server.client() as client:
        assert not client.is_ready()
        client.wait_until_ready(120)
        assert client.generate(PROMPT, **GREEDY).usage.completion_tokens == 24
    server.stop()
