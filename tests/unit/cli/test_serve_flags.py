from __future__ import annotations

import inspect
import re
from typing import Any, get_args, get_type_hints

import pytest
from typer.testing import CliRunner

from loraplex_cli.commands.serve import serve, setting_flags
from loraplex_cli.main import app
from loraplex_server.config import ServerConfig, load_config

NOT_SETTINGS = {"context", "config", "as_json"}


def _is_plain(name: str, default: object) -> bool:
    """Whether the default shows as it is."""
    return name not in ("base", "data_dir") and not isinstance(default, tuple)


def _options() -> dict[str, Any]:
    hints = get_type_hints(serve, include_extras=True)
    return {
        name: hints[name].__metadata__[0]
        for name in inspect.signature(serve).parameters
        if name not in NOT_SETTINGS
    }


def test_every_setting_is_a_flag_and_every_flag_a_setting() -> None:
    assert set(_options()) == set(ServerConfig.model_fields)


@pytest.mark.parametrize("name", sorted(ServerConfig.model_fields))
def test_a_flag_says_what_its_setting_says(name: str) -> None:
    assert _options()[name].help == ServerConfig.model_fields[name].description


@pytest.mark.parametrize(
    "name",
    sorted(name for name, field in ServerConfig.model_fields.items() if _is_plain(name, field.default)),
)
def test_a_flag_shows_the_default_of_its_setting(name: str) -> None:
    default = ServerConfig.model_fields[name].default
    shown = _options()[name].show_default

    if isinstance(default, float):
        assert float(shown) == default
    else:
        assert shown == {True: "true", False: "false", None: "null"}.get(default, str(default))


def test_only_flags_that_were_given_count() -> None:
    parameters = {
        "config": "f",
        "as_json": True,
        "port": 0,
        "host": None,
        "adapter_roots": [],
        "adapter_url_schemes": (),
        "reflection": False,
    }

    assert setting_flags(parameters) == {"port": 0, "reflection": False}


@pytest.mark.parametrize(
    "name",
    sorted(
        name for name, field in ServerConfig.model_fields.items() if type(None) in get_args(field.annotation)
    ),
)
def test_every_setting_that_can_be_off_takes_null_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    taken: dict[str, Any] = {}
    monkeypatch.setattr("loraplex_cli.commands.serve._run", lambda file, flags, output: taken.update(flags))
    result = CliRunner().invoke(app, ["serve", f"--{name.replace('_', '-')}", "null"])

    assert result.exit_code == 0, result.output
    assert getattr(load_config(flags=taken, environment={f"LORAPLEX_{name.upper()}": "1"}), name) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-running", "0"], "max_running=0 (flag)"),
        (["--metrics-port", "99999"], "metrics_port"),
        (["--kv-cache-bytes", "much"], "kv_cache_bytes='much' (flag): Input should be a valid integer"),
        (["--max-running", "600", "--max-batched-tokens", "512"], "max_batched_tokens=512"),
    ],
)
def test_a_setting_out_of_range_ends_as_bad_input_that_names_it(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["serve", *arguments])

    assert result.exit_code == 2
    assert re.search(re.escape(message), result.output)
