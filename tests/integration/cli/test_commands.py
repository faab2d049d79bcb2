"""The commands that talk to a server, against a real one."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.main import app
from tests.integration.cli.conftest import Serving

FEW = ("--raw", "--max-tokens", "4", "--temperature", "0")


def run(serving: Serving, *arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [*arguments, "--server", serving.target], input=stdin)


def document(result: Result) -> Any:
    assert result.exit_code == ExitCode.OK, result.stderr
    (line,) = result.stdout.splitlines()
    return json.loads(line)


def test_a_ready_server_is_healthy(serving: Serving) -> None:
    assert document(run(serving, "health", "--json"))["serving"] is True


def test_text_streams_to_standard_output_and_nothing_else(serving: Serving) -> None:
    whole = document(run(serving, "generate", "aaa", *FEW, "--json"))
    streamed = run(serving, "generate", "-", *FEW, stdin="aaa")

    assert whole["usage"]["completion_tokens"] == 4
    assert streamed.stdout == whole["text"] + "\n"
    assert "4 tokens" in streamed.stderr


def test_log_probabilities_come_in_the_document(serving: Serving) -> None:
    found = document(run(serving, "generate", "aaa", *FEW, "--logprobs", "2", "--json"))

    assert [len(position["top"]) for position in found["logprobs"]] == [2] * 4


def test_log_probabilities_without_json_are_bad_usage(serving: Serving) -> None:
    assert run(serving, "generate", "aaa", *FEW, "--logprobs", "2").exit_code == ExitCode.BAD_INPUT


def test_what_the_server_refuses_has_its_exit_code_and_names_the_field(serving: Serving) -> None:
    result = run(serving, "generate", "aaa", "--max-tokens", "1000000", "--json")

    error = json.loads(result.stdout)["error"]
    assert result.exit_code == ExitCode.REFUSED
    assert (error["reason"], error["violations"][0]["field"]) == ("INVALID_REQUEST", "stopping.max_tokens")


def test_an_adapter_is_registered_listed_shown_asked_and_deleted(serving: Serving, adapter: Path) -> None:
    checked = document(run(serving, "adapters", "register", "team/a", str(adapter), "--dry-run", "--json"))
    assert (checked["stored"], document(run(serving, "adapters", "list", "--json"))["adapters"]) == (
        False,
        [],
    )

    stored = document(run(serving, "adapters", "register", "team/a", str(adapter), "--json"))["adapter"]
    (listed,) = document(run(serving, "adapters", "list", "--json"))["adapters"]
    assert (listed["name"], listed["digest"], listed["etag"]) == ("team/a", stored["digest"], stored["etag"])
    answer = document(run(serving, "generate", "aaa", *FEW, "--adapter", "team/a", "--json"))
    assert answer["adapter_digest"] == stored["digest"] == checked["adapter"]["digest"]
    shown = document(run(serving, "adapters", "show", "team/a", "--json"))["adapter"]
    (version,) = shown["versions"]
    assert (version["rank"], version["residency"]["tier"]) == (4, "slot")

    assert document(run(serving, "adapters", "delete", "team/a", "--json")) == {"deleted": "team/a"}
    assert run(serving, "adapters", "show", "team/a").exit_code == ExitCode.REFUSED


def test_the_metrics_tell_how_many_adapters_are_registered(serving: Serving, adapter: Path) -> None:
    def registered() -> str:
        url = f"http://127.0.0.1:{serving.document['metrics_port']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as response:
            lines: list[str] = response.read().decode().splitlines()
        return next(line for line in lines if line.startswith("loraplex_adapters_registered "))

    assert registered() == "loraplex_adapters_registered 0.0"
    document(run(serving, "adapters", "register", "counted", str(adapter), "--json"))
    assert registered() == "loraplex_adapters_registered 1.0"
    document(run(serving, "adapters", "delete", "counted", "--json"))
    assert registered() == "loraplex_adapters_registered 0.0"


def test_a_wrong_digest_is_refused(serving: Serving, adapter: Path) -> None:
    result = run(serving, "adapters", "register", "b", str(adapter), "--expect-digest", "0" * 64, "--json")

    assert result.exit_code == ExitCode.REFUSED
    assert json.loads(result.stdout)["error"]["reason"] == "DIGEST_MISMATCH"


def test_a_folder_on_the_server_outside_its_roots_is_refused(serving: Serving, adapter: Path) -> None:
    result = run(serving, "adapters", "register", "b", str(adapter), "--on-server", "--json")

    assert result.exit_code == ExitCode.REFUSED
    assert "adapter_roots" in json.loads(result.stdout)["error"]["message"]


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_the_size_of_what_is_sent_is_shown_on_standard_error_only(
    serving: Serving, adapter: Path, arguments: tuple[str, ...]
) -> None:
    result = run(serving, "adapters", "register", "c", str(adapter), "--dry-run", *arguments)

    assert "sending" in result.stderr
    assert "sending" not in result.stdout
