"""Commands, make targets and links in the documents are those that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from loraplex_cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
COMMAND: Any = typer.main.get_command(app)


def _console_lines(page: Path) -> list[str]:
    """What follows the prompts, continued lines joined."""
    text = page.read_text().replace("\\\n", " ")
    return re.findall(r"^\$ (.*)$", text, re.MULTILINE)


def _calls(program: str) -> list[Any]:
    return [
        pytest.param(line, id=f"{page.name}: {line[:60]}")
        for page in PAGES
        for line in _console_lines(page)
        if re.match(rf"(LORAPLEX_\w+=\S+ )*{program} ", line)
    ]


@pytest.mark.parametrize("line", _calls("loraplex"))
def test_a_command_of_the_documents_exists_with_its_options(line: str) -> None:
    words = shlex.split(line.partition(" | ")[0])
    words = words[words.index("loraplex") + 1 :]
    command = COMMAND
    while words and hasattr(command, "commands"):
        command = command.commands[words.pop(0)]

    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    required = [
        parameter.opts[0]
        for parameter in command.params
        if parameter.required and parameter.param_type_name == "option"
    ]
    given = {word.partition("=")[0] for word in words if word.startswith("-") and word != "-"}

    assert given <= known
    assert given >= set(required)


@pytest.mark.parametrize("line", _calls("make"))
def test_a_make_target_of_the_documents_exists(line: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)

    assert line.split()[1] in targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if not anchor:
            continue  # a picture, perhaps
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
        assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, target
