"""`loraplex serve` as a user starts it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import yaml

from loraplex_client import LoraplexClient
from tests.integration.live_server import SETTINGS, START_TIMEOUT_S, environment, running_server


def test_the_ready_line_is_all_of_standard_output_and_json_logs_all_of_standard_error(
    tiny_base: Path, tmp_path: Path
) -> None:
    with running_server(tiny_base, tmp_path, log_format="json") as server:
        with server.client() as client:
            assert client.generate("x", max_tokens=1).usage.completion_tokens == 1
        server.send_signal(signal.SIGINT)
        assert server.await_exit() == 0
        assert server.process.stdout is not None
        assert server.process.stdout.read() == ""

        lines = [json.loads(line) for line in server.log().splitlines()]
    assert [line["message"] for line in lines if line["logger"] == "loraplex_server.app"] == [
        "listening",
        "serving",
        "draining",
        "stopped",
    ]


def test_settings_come_from_flags_then_environment_then_the_file(tiny_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    settings = {**SETTINGS, "base": str(tiny_base), "data_dir": str(tmp_path / "data")}
    file.write_text(yaml.safe_dump({**settings, "max_running": 5, "max_waiting": 6, "adapter_slots": 7}))
    command = [sys.executable, "-m", "loraplex_cli", "serve", "--config", str(file), "--max-running", "3"]
    variables = {"LORAPLEX_MAX_RUNNING": "4", "LORAPLEX_MAX_WAITING": "4"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env={**environment(), **variables}
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.fullmatch(r"serving on 127\.0\.0\.1:(\d+), metrics on port (\d+)\n", line)
        assert match, line
        with LoraplexClient(f"127.0.0.1:{match[1]}") as client:
            limits = client.server_info().limits
        with urllib.request.urlopen(f"http://127.0.0.1:{match[2]}/metrics", timeout=10) as response:
            assert b"loraplex_build_info" in response.read()
    finally:
        process.terminate()
        exit_code = process.wait(START_TIMEOUT_S)
        process.stdout.close()  # type: ignore[union-attr]

    assert (limits.max_running, limits.max_waiting, limits.adapter_slots) == (3, 4, 7)
    assert exit_code == 0


def test_a_setting_that_does_not_exist_is_refused_with_the_one_that_was_meant(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "loraplex_cli", "serve", "--json"],
        env={**environment(), "LORAPLEX_MAX_RUNING": "3"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert result.returncode == 2
    assert "did you mean 'max_running'" in result.stderr
    assert json.loads(result.stdout)["error"]["reason"] == "INVALID_CONFIG"
