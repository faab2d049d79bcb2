from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.main import app

HEAVY = ("torch", "transformers", "grpc", "google.protobuf", "rich", "numpy", "loraplex_server")
COMMANDS = [
    ["serve"],
    ["generate"],
    ["demo"],
    ["version"],
    ["adapters", "register"],
    ["adapters", "list"],
    ["adapters", "show"],
    ["adapters", "delete"],
    ["base", "fetch"],
    ["base", "inspect"],
    ["base", "list"],
    ["train", "run"],
    ["config", "check"],
    ["config", "schema"],
]


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


def test_an_unknown_option_is_a_usage_error() -> None:
    assert CliRunner().invoke(app, ["version", "--jsn"]).exit_code == ExitCode.BAD_INPUT
