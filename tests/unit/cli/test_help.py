from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.models import CommandInfo
from typer.testing import CliRunner

from loraplex_cli import options
from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.main import app
from loraplex_client import requests


def _name(command: CommandInfo) -> str:
    assert command.callback is not None
    return command.name or command.callback.__name__


ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "transformers", "grpc", "google.protobuf", "rich", "numpy", "loraplex_server")


def _commands(group: typer.Typer) -> list[list[str]]:
    """Words of every command, of groups within groups too."""
    within = [inner.typer_instance for inner in group.registered_groups if inner.typer_instance is not None]
    return [
        *([_name(command)] for command in group.registered_commands),
        *([str(inner.info.name), *words] for inner in within for words in _commands(inner)),
    ]


COMMANDS = _commands(app)


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["adapters", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    script = f"""
import sys
sys.argv = ["loraplex", *{arguments!r}]
from loraplex_cli.main import main
try:
    main()
finally:
    print([module for module in {HEAVY!r} if module in sys.modules], file=sys.stderr)
"""

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert "Usage: loraplex" in done.stdout
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_documents_its_exit_codes_and_offers_json(command: list[str]) -> None:
    help_text = " ".join(CliRunner().invoke(app, [*command, "--help"]).output.split())

    assert "--json" in help_text
    for code in ExitCode:
        assert f"{int(code)} " in help_text.partition("Exit codes:")[2]


def test_the_documentation_lists_every_command_and_no_other() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    rows = re.findall(r"^\| `loraplex ([^`]*)` \|", page, re.MULTILINE)

    documented = [[word for word in row.split() if word.islower()] for row in rows]

    assert sorted(documented) == sorted(COMMANDS)


def test_an_unknown_option_is_a_usage_error() -> None:
    assert CliRunner().invoke(app, ["version", "--jsn"]).exit_code == ExitCode.BAD_INPUT


def test_numbers_that_the_wire_carries_are_those_of_the_client() -> None:
    assert (options.MAX_COUNT, options.MAX_SEED) == (requests.MAX_COUNT, requests.MAX_SEED)
