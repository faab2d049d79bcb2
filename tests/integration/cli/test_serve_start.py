from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.cli.conftest import environment, serve_command


@pytest.fixture
def taken_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield str(listener.getsockname()[1])


def refused(base: Path, data_dir: Path, *arguments: str) -> tuple[int, Any, str]:
    """Exit code, the error of the one document on standard output, and standard error."""
    done = subprocess.run(
        serve_command(base, data_dir, *arguments),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
    )
    (line,) = done.stdout.splitlines()
    return done.returncode, json.loads(line)["error"], done.stderr


@pytest.mark.parametrize(
    ("option", "other"), [("--port", "--metrics-port"), ("--metrics-port", "--port")], ids=["grpc", "metrics"]
)
def test_a_taken_port_is_one_document_that_says_what_to_do(
    base: Path, tmp_path: Path, taken_port: str, option: str, other: str
) -> None:
    exit_code, error, log = refused(base, tmp_path, option, taken_port, other, "0")

    assert (exit_code, error["reason"]) == (1, "PORT_IN_USE")
    assert taken_port in error["message"]
    assert "it is in use" in error["message"]
    assert "0 takes any free one" in error["message"]
    assert "add_port" not in log
    assert "Traceback" not in log


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_named_in_one_line(base: Path, tmp_path: Path) -> None:
    exit_code, error, log = refused(
        base, tmp_path, "--port", "0", "--metrics-port", "null", "--device", "cuda"
    )

    assert (exit_code, error["reason"]) == (2, "INVALID_CONFIG")
    assert "finds no GPU" in error["message"]
    assert "Traceback" not in log
    assert "listening" not in log


@pytest.mark.parametrize(
    ("url", "message"),
    [("foo://x", "must be SQLite or PostgreSQL"), ("nonsense", "the registry's URL is none")],
)
def test_a_registry_that_no_waiting_would_open_is_bad_configuration(
    base: Path, tmp_path: Path, url: str, message: str
) -> None:
    exit_code, error, log = refused(
        base, tmp_path, "--port", "0", "--metrics-port", "null", "--registry-url", url
    )

    assert (exit_code, error["reason"]) == (2, "INVALID_CONFIG")
    assert "registry_url: the registry's" in error["message"]
    assert message in error["message"]
    assert "listening" not in log


def test_a_cache_that_one_context_outgrows_is_refused_before_the_base_is_read(
    base: Path, tmp_path: Path
) -> None:
    exit_code, error, log = refused(
        *(base, tmp_path, "--port", "0", "--metrics-port", "null", "--device", "cpu"),
        *("--kv-cache-bytes", "10"),
    )

    assert (exit_code, error["reason"]) == (1, "INSUFFICIENT_MEMORY")
    assert "a key-value cache of 10 bytes holds 0 tokens" in error["message"]
    assert "Raise kv_cache_bytes to" in error["message"]
    assert "Traceback" not in log


def test_an_unsupported_architecture_is_bad_input_that_lists_the_supported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))

    exit_code, error, _ = refused(tmp_path, tmp_path / "data", "--port", "0")

    assert (exit_code, error["reason"]) == (2, "UNSUPPORTED_ARCHITECTURE")
    assert all(family in error["message"] for family in ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM2"))
    assert "\n" not in error["message"]


def test_a_server_shows_how_far_the_base_is_and_ends_with_0_after_a_signal(
    base: Path, tmp_path: Path
) -> None:
    command = serve_command(base, tmp_path, "--port", "0", "--metrics-port", "null", "--device", "cpu")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)

    assert ready["grpc_port"] > 0
    assert ready["metrics_port"] is None
    assert process.returncode == 0
    assert "loading the base model" in log
