"""The command line against a running server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.main import app
from loraplex_client import LoraplexClient
from tests.integration.conftest import ADAPTERS, NewAdapter
from tests.integration.live_server import LiveServer, await_idle, environment
from tests.integration.streams import PROMPT

ANSWER = {"temperature": 0, "max_tokens": 24}
FLAGS = ("--temperature", "0", "--max-tokens", "24")
ENDLESS = ("generate", "x", "--raw", "--ignore-eos", "--max-tokens", "20000", "--temperature", "2")
"""Longer than any test lasts."""


@pytest.fixture
def run(server: LiveServer) -> Any:
    """Run a command against the server, which it finds through the environment."""

    def invoke(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, arguments, env={"LORAPLEX_SERVER": server.target}, input=stdin)

    return invoke


def document(result: Result) -> Any:
    """Standard output must be one JSON document on one line."""
    (line,) = result.stdout.splitlines()
    return json.loads(line)


def command(server: LiveServer, *arguments: str) -> list[str]:
    """The command as a process of its own."""
    return [sys.executable, "-m", "loraplex_cli", *arguments, "--server", server.target]


def test_generate_prints_the_answer_and_nothing_else_on_standard_output(
    run: Any, client: LoraplexClient
) -> None:
    messages = [{"role": "user", "content": PROMPT}]

    result = run("generate", PROMPT, "--adapter", "red", *FLAGS)

    assert result.exit_code == ExitCode.OK
    assert result.stdout == client.generate(messages=messages, adapter="red", **ANSWER).text + "\n"  # type: ignore[arg-type]
    assert "24 tokens in" in result.stderr
    assert "ended by length" in result.stderr


def test_generate_as_json_carries_the_whole_completion(run: Any, client: LoraplexClient) -> None:
    answer = client.generate(PROMPT, adapter="green", logprobs=2, seed=5, max_tokens=24)

    flags = ["--raw", "-a", "green", "--logprobs", "2", "--seed", "5", "--max-tokens", "24", "--json"]
    result = document(run("generate", PROMPT, *flags))

    assert result["text"] == answer.text
    assert result["finish_reason"] == answer.finish_reason
    assert result["usage"]["completion_tokens"] == answer.usage.completion_tokens
    assert result["adapter_digest"] == client.adapters.get("green").digest
    assert [position["chosen"]["token_id"] for position in result["logprobs"]] == [
        position.chosen.token_id for position in answer.logprobs
    ]
    assert set(result["timings"]) == {
        "queue_seconds",
        "adapter_load_seconds",
        "prefill_seconds",
        "decode_seconds",
    }


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_generate_reads_the_prompt_from_standard_input(run: Any, as_json: tuple[str, ...]) -> None:
    given = run("generate", PROMPT, *FLAGS, *as_json)
    piped = run("generate", "-", *FLAGS, *as_json, stdin=PROMPT)

    assert piped.exit_code == ExitCode.OK
    if as_json:
        assert document(piped)["text"] == document(given)["text"]
    else:
        assert piped.stdout == given.stdout


def test_a_system_message_and_a_stop_string_reach_the_server(run: Any, client: LoraplexClient) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
    whole = client.generate(messages=messages, **ANSWER)  # type: ignore[arg-type]
    stop = whole.text[5:7]

    result = run("generate", PROMPT, "--system", "Be brief.", "--stop", stop, *FLAGS)

    assert result.stdout == whole.text[: whole.text.find(stop)] + "\n"


@pytest.mark.parametrize(
    ("arguments", "reason", "status"),
    [
        (("generate", "x", "-a", "nobody"), "ADAPTER_NOT_FOUND", "NOT_FOUND"),
        (("adapters", "show", "nobody"), "ADAPTER_NOT_FOUND", "NOT_FOUND"),
        (("adapters", "delete", "nobody"), "ADAPTER_NOT_FOUND", "NOT_FOUND"),
        (("generate", "x", "--max-tokens", "1000000"), "INVALID_REQUEST", "INVALID_ARGUMENT"),
        (("generate", "x " * 40_000), "CONTEXT_OVERFLOW", "OUT_OF_RANGE"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_the_server_refuses_ends_with_4_and_the_servers_reason(
    run: Any, arguments: tuple[str, ...], reason: str, status: str
) -> None:
    result = run(*arguments, "--json")

    error = document(result)["error"]
    assert result.exit_code == error["exit_code"] == ExitCode.REFUSED
    assert error["reason"] == reason
    assert error["status"] == status
    assert error["request_id"]
    assert reason in result.stderr
    assert run(*arguments).exit_code == ExitCode.REFUSED


def test_a_deadline_that_passes_is_a_refusal(run: Any, client: LoraplexClient) -> None:
    result = run("generate", "x", "--max-tokens", "20000", "--timeout", "0.001", "--json")

    assert document(result)["error"]["status"] == "DEADLINE_EXCEEDED"
    await_idle(client)


def test_a_folder_on_the_server_is_registered_as_the_same_package_as_one_that_is_sent(
    run: Any, new_adapter: NewAdapter
) -> None:
    folder = str(new_adapter("by-hand"))

    sent = document(run("adapters", "register", "cli/sent", folder, "--json"))["adapter"]
    on_server = document(run("adapters", "register", "cli/kept", folder, "--on-server", "--json"))["adapter"]
    listed = document(run("adapters", "list", "--json"))["adapters"]
    table = run("adapters", "list").stdout.splitlines()
    text = run("adapters", "show", "cli/sent").stdout

    names = ["cli/kept", "cli/sent", *sorted(ADAPTERS)]  # by tenant, then by adapter
    assert on_server["digest"] == sent["digest"]
    assert sent["digest"] in text
    assert [adapter["name"] for adapter in listed] == names
    assert [line.split()[0] for line in table] == ["name", *names]
    for name in ("cli/sent", "cli/kept"):
        assert document(run("adapters", "delete", name, "--json")) == {"deleted": name}


def test_a_refused_package_ends_with_4_and_says_why(run: Any, packages: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dora"
    shutil.copytree(packages / "red", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))

    refused = run("adapters", "register", "dora", str(folder), "--json")
    mismatch = run("adapters", "register", "x", str(packages / "red"), "--expect-digest", "0" * 64, "--json")

    assert (refused.exit_code, document(refused)["error"]["reason"]) == (4, "UNSUPPORTED_PEFT_FEATURE")
    assert "DoRA" in refused.stderr
    assert (mismatch.exit_code, document(mismatch)["error"]["reason"]) == (4, "DIGEST_MISMATCH")


def test_ctrl_c_ends_generate_with_130_and_the_request_with_it(
    server: LiveServer, client: LoraplexClient
) -> None:
    with subprocess.Popen(
        command(server, *ENDLESS), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)  # the answer streams
        process.send_signal(signal.SIGINT)

        assert process.wait(30) == ExitCode.INTERRUPTED
        assert b"Traceback" not in process.stderr.read()
    await_idle(client)


def test_a_reader_that_has_seen_enough_ends_generate_quietly(
    server: LiveServer, client: LoraplexClient
) -> None:
    with subprocess.Popen(
        command(server, *ENDLESS), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.stdout.close()  # as `| head` does

        process.wait(30)
        assert b"Traceback" not in process.stderr.read()
    await_idle(client)


def test_the_server_may_be_named_by_a_flag(server: LiveServer) -> None:
    result = CliRunner().invoke(
        app, ["adapters", "list", "--server", server.target], env={"LORAPLEX_SERVER": "127.0.0.1:1"}
    )

    assert result.exit_code == ExitCode.OK
    assert os.environ.get("LORAPLEX_SERVER") is None
