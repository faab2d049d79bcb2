"""The Dockerfile as a text: its targets, users, health checks, and that what it names exists."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.main import app
from loraplex_server.config import ServerConfig, load_config

ROOT = Path(__file__).parents[3]
TARGETS = ("cpu", "cuda")


@dataclass
class Stage:
    name: str
    image: str  # or an earlier stage
    instructions: list[tuple[str, str]] = field(default_factory=list)


def _parse() -> dict[str, Stage]:
    """Stages in order, comments and line breaks taken out."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    stages: dict[str, Stage] = {}
    for line in text.replace("\\\n", " ").splitlines():
        keyword, _, rest = line.strip().partition(" ")
        if keyword == "FROM":
            image, _, name = rest.partition(" AS ")
            current = stages[name] = Stage(name, image)
        elif keyword and stages:
            current.instructions.append((keyword, " ".join(rest.split())))
    return stages


STAGES = _parse()


def _history(target: str) -> list[tuple[str, str]]:
    """All instructions that make a target, those of the stages it stands on first."""
    stage = STAGES[target]
    return [*(_history(stage.image) if stage.image in STAGES else []), *stage.instructions]


def _last(target: str, keyword: str) -> str:
    return [rest for name, rest in _history(target) if name == keyword][-1]


def test_the_last_stage_is_what_a_plain_build_gives() -> None:
    assert list(STAGES)[-1] == "cpu"
    assert set(TARGETS) < STAGES.keys()


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_does_not_run_as_root(target: str) -> None:
    user, group = map(int, _last(target, "USER").split(":"))

    assert user >= 1000
    assert group >= 1000
    assert f"--uid {user} " in " ".join(rest for name, rest in _history(target) if name == "RUN")


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_is_checked_by_a_command_line_that_exists(target: str) -> None:
    check = re.sub(r"\$\{LORAPLEX_PORT:-(\d+)\}", "1", _last(target, "HEALTHCHECK").partition("CMD ")[2])
    command, fallback = check.split(" || ")
    program, *arguments = shlex.split(command)

    assert (program, fallback) == ("loraplex", "exit 1")
    assert (
        CliRunner().invoke(app, arguments).exit_code == ExitCode.UNREACHABLE
    )  # understood, and nothing there


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_serves_by_the_exec_form_so_that_signals_arrive(target: str) -> None:
    assert json.loads(_last(target, "ENTRYPOINT")) + json.loads(_last(target, "CMD")) == ["loraplex", "serve"]
    assert _last(target, "STOPSIGNAL") == "SIGTERM"


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_sets_settings_that_exist_and_exposes_their_ports(target: str) -> None:
    variables = dict(
        pair.partition("=")[::2]
        for name, rest in _history(target)
        if name == "ENV"
        for pair in shlex.split(rest)
    )

    settings = load_config(environment=variables)

    assert settings.host == "0.0.0.0"
    volumes = [Path(volume) for volume in json.loads(_last(target, "VOLUME"))]
    assert any(settings.data_dir.is_relative_to(volume) for volume in volumes)
    assert Path(variables["XDG_CACHE_HOME"]) in volumes
    defaults = ServerConfig.model_fields
    assert _last(target, "EXPOSE") == f"{defaults['port'].default} {defaults['metrics_port'].default}"


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_carries_the_environment_that_was_made_for_it(target: str) -> None:
    (copied,) = [rest for name, rest in STAGES[target].instructions if name == "COPY"]

    assert copied == f"--from={target}-environment /opt/loraplex /opt/loraplex"
    assert "[server,s3,gcs]" in STAGES[f"{target}-environment"].instructions[-1][1]


def test_images_have_tags_that_are_not_latest() -> None:
    (image,) = re.findall(r"^ARG PYTHON_IMAGE=(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)

    assert re.fullmatch(r"python:3\.\d+-slim-\w+", image)
    assert {stage.image for stage in STAGES.values()} - STAGES.keys() == {"${PYTHON_IMAGE}"}


def test_whatever_pip_installs_is_pinned() -> None:
    runs = [rest for stage in STAGES.values() for name, rest in stage.instructions if name == "RUN"]
    installs = [
        part for run in runs for part in run.split(" && ") if " pip install " in part or " pip wheel " in part
    ]

    assert len(installs) == 8
    for install in installs:
        assert "--no-cache-dir" in install
        assert re.search(
            r"--(build-)?constraint constraints/constraints\.txt|--requirement constraints/pip\.txt", install
        )


def test_packages_of_the_system_leave_no_lists_behind() -> None:
    for stage in STAGES.values():
        for name, rest in stage.instructions:
            if name == "RUN" and "apt-get" in rest:
                assert "install --yes --no-install-recommends" in rest
                assert rest.endswith("rm -rf /var/lib/apt/lists/*")


def _copied_from_the_context() -> list[str]:
    return [
        source
        for stage in STAGES.values()
        for name, rest in stage.instructions
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]


def test_what_is_copied_exists_and_is_all_that_the_wheel_is_made_of() -> None:
    copied = _copied_from_the_context()
    project: Any = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]

    assert all((ROOT / source).exists() for source in copied)
    assert all(any(Path(package).is_relative_to(source) for source in copied) for package in packages)


def test_the_context_is_what_is_copied_and_nothing_else() -> None:
    assert not any(_is_ignored(source) for source in _copied_from_the_context())
    for unneeded in (
        ".git/config",
        ".venv/bin/python",
        "adapters/finance/train.jsonl",
        "tests/x.py",
        "server.yaml",
    ):
        assert _is_ignored(unneeded), unneeded
    assert _is_ignored("server/loraplex_server/__pycache__")


def _is_ignored(path: str) -> bool:
    """As Docker decides: the last pattern that matches the path or a folder above it."""
    parts = path.split("/")
    above = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if line and not line.startswith("#") and any(_matches(pattern, each) for each in above):
            ignored = not line.startswith("!")
    return ignored


def _matches(pattern: str, path: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch(path.rpartition("/")[2], pattern.removeprefix("**/"))
    return pattern.count("/") == path.count("/") and fnmatch(path, pattern)
