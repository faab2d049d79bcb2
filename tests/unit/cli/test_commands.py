from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from loraplex_cli.demo import questions
from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.main import app, main
from loraplex_cli.options import checked_server
from loraplex_server.data_dir import exclusive_use
from tests.unit.client.scripted_server import ScriptedServer, running

NOWHERE = "127.0.0.1:1"


def run(*arguments: str, env: dict[str, str] | None = None, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, arguments, env=env, input=stdin)


def document(result: Result) -> Any:
    """Standard output must be one JSON document on one line."""
    (line,) = result.stdout.splitlines()
    return json.loads(line)


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate",),
        ("generate", "hi", "--temperature", "9"),
        ("generate", "hi", "--temperature", "nan"),
        ("generate", "hi", "--top-p", "2"),
        ("generate", "hi", "--top-p", "0"),
        ("generate", "hi", "--top-p", "nan"),
        ("generate", "hi", "--min-p", "-1"),
        ("generate", "hi", "--timeout", "nan"),
        ("generate", "hi", "--seed", "99999999999999999999999"),
        ("generate", "hi", "--top-k", "99999999999999"),
        ("generate", "hi", "--max-tokens", "99999999999999"),
        ("generate", "hi", "--server", ""),
        ("generate", "hi", "--server", "localhost"),
        ("generate", "hi", "--server", "localhost:99999"),
        ("loadtest", "run", "--server", "localhost"),
        ("generate", "\udcff"),
        ("generate", "hi", "--system", "\udcff"),
        ("adapters", "show"),
        ("serve", "--max-runing", "3"),
    ],
    ids=ascii,
)
def test_bad_usage_is_a_document_too(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["loraplex", *arguments, "--json"])

    with pytest.raises(SystemExit) as ended:
        main()

    assert ended.value.code == ExitCode.BAD_INPUT
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["error"]["reason"] == "BAD_USAGE"


def test_a_system_message_is_not_dropped_silently_from_a_raw_prompt() -> None:
    result = run("generate", "hi", "--raw", "--system", "be brief", "--server", NOWHERE, "--json")

    assert result.exit_code == ExitCode.BAD_INPUT
    assert document(result)["error"]["reason"] == "BAD_USAGE"


def test_bytes_of_standard_input_that_are_no_text_are_bad_usage() -> None:
    result = CliRunner().invoke(app, ["generate", "-", "--json", "--server", NOWHERE], input=b"\xff\xfe")

    assert result.exit_code == ExitCode.BAD_INPUT
    assert document(result)["error"]["message"] == "the prompt is not UTF-8"


def test_an_answer_that_breaks_off_ends_its_line_before_the_error_says_how_to_wait_longer() -> None:
    with running(ScriptedServer(endless=True)) as server:
        result = run("generate", "hi", "--server", server.target, "--timeout", "1")

    assert result.exit_code == ExitCode.REFUSED
    assert result.stdout == "hello\n"
    assert "--timeout" in result.stderr


def test_an_address_in_brackets_is_an_address() -> None:
    assert checked_server("[::1]:50051") == "[::1]:50051"


@pytest.mark.parametrize("arguments", [(), ("--json",)], ids=str)
def test_a_full_standard_output_ends_in_one_line_and_not_in_a_traceback(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "loraplex_cli", "version", *arguments]

    with open("/dev/full", "wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)

    assert ended.returncode == ExitCode.FAILURE
    (line,) = ended.stderr.splitlines()
    assert line.endswith("(OUTPUT_FAILED)")


def test_a_file_is_no_data_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()

    with pytest.raises(NotADirectoryError, match="is a file; name a folder"), exclusive_use(file):
        pass


@pytest.mark.parametrize(
    "command",
    [
        ("generate", "hi"),
        ("adapters", "list"),
        ("adapters", "show", "a"),
        ("adapters", "delete", "a"),
    ],
    ids=" ".join,
)
def test_without_a_server_a_command_ends_as_unreachable(command: tuple[str, ...]) -> None:
    result = run(*command, "--server", NOWHERE, "--timeout", "5", "--json")

    assert result.exit_code == ExitCode.UNREACHABLE
    assert document(result)["error"]["status"] == "UNAVAILABLE"
    assert result.stderr.startswith("error: no server answers; start one with `loraplex serve`")


def test_a_folder_without_an_adapter_is_bad_input(tmp_path: Path) -> None:
    result = run("adapters", "register", "a", str(tmp_path), "--server", NOWHERE, "--json")

    assert result.exit_code == ExitCode.BAD_INPUT
    assert "adapter_config.json" in document(result)["error"]["message"]


def test_version_is_one_document() -> None:
    assert set(document(run("version", "--json"))) == {"loraplex", "python"}


def test_the_version_is_told_by_the_usual_option_too() -> None:
    assert run("--version").stdout == run("version").stdout


def test_config_check_shows_what_would_hold(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("port: 1234\nmax_running: 8\n")

    result = run("config", "check", str(file), "--json", env={"LORAPLEX_PORT": "4321"})

    settings = document(result)["settings"]
    assert (settings["port"], settings["max_running"]) == (4321, 8)


def test_config_check_suggests_the_setting_that_was_meant(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("max_runing: 8\n")

    result = run("config", "check", str(file), "--json")

    assert result.exit_code == ExitCode.BAD_INPUT
    assert "did you mean 'max_running'" in document(result)["error"]["message"]


def test_null_in_the_environment_switches_a_nullable_setting_off() -> None:
    result = run("config", "check", "--json", env={"LORAPLEX_METRICS_PORT": "null"})

    assert document(result)["settings"]["metrics_port"] is None


def test_the_servers_address_in_the_environment_is_no_unknown_setting() -> None:
    assert run("config", "check", env={"LORAPLEX_SERVER": NOWHERE}).exit_code == ExitCode.OK


def test_config_schema_describes_every_setting() -> None:
    properties = document(run("config", "schema", "--json"))["properties"]

    assert "max_running" in properties
    assert all(entry["description"] for entry in properties.values())


def test_an_unsupported_base_is_bad_input_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))

    result = run("base", "inspect", str(tmp_path), "--json")

    assert result.exit_code == ExitCode.BAD_INPUT
    error = document(result)["error"]
    assert error["reason"] == "UNSUPPORTED_ARCHITECTURE"
    assert "LlamaForCausalLM" in error["message"]


def test_a_device_that_does_not_exist_is_bad_usage() -> None:
    assert run("base", "inspect", "--device", "abacus").exit_code == ExitCode.BAD_INPUT


def test_an_unknown_setting_in_the_environment_is_refused_with_the_one_that_was_meant() -> None:
    result = run("config", "check", "--json", env={"LORAPLEX_ADAPTER_SLOT": "3"})

    assert result.exit_code == ExitCode.BAD_INPUT
    assert "did you mean 'adapter_slots'" in document(result)["error"]["message"]


def test_a_flag_that_does_not_exist_is_refused_with_the_one_that_was_meant() -> None:
    result = run("serve", "--max-runing", "3")

    assert result.exit_code == ExitCode.BAD_INPUT
    assert "--max-running" in result.output


def test_outside_of_the_sources_the_demo_says_where_the_domains_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(questions, "__file__", str(tmp_path / "a" / "b" / "c" / "questions.py"))

    result = run("demo", "--json")

    assert result.exit_code == ExitCode.BAD_INPUT
    assert "--adapters" in document(result)["error"]["message"]


def test_bases_are_listed_from_the_cache(tmp_path: Path) -> None:
    base = tmp_path / "loraplex" / "bases" / "tiny-1"
    base.mkdir(parents=True)
    (base / "model.safetensors").write_bytes(b"12345")
    (base.parent / ".fetch-abc").mkdir()

    listed = document(run("base", "list", "--json", env={"XDG_CACHE_HOME": str(tmp_path)}))

    assert listed == {"bases": [{"id": "tiny-1", "folder": str(base), "size_bytes": 5}]}


def test_training_without_a_recipe_is_bad_input(tmp_path: Path) -> None:
    assert run("train", "run", str(tmp_path / "none.yaml"), "--json").exit_code == ExitCode.BAD_INPUT


def test_the_demo_says_which_adapter_is_missing(tmp_path: Path) -> None:
    result = run("demo", "--adapters", str(tmp_path), "--json")

    assert result.exit_code == ExitCode.BAD_INPUT
    message = document(result)["error"]["message"]
    assert str(tmp_path / "ecommerce" / "package") in message
    assert "run this in a clone of the sources" in message
    assert "recipe.yaml" not in message
