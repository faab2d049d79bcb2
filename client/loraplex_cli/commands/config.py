"""`loraplex config`: the server's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loraplex_cli.exit_codes import EXIT_CODES_HELP
from loraplex_cli.options import JsonOption
from loraplex_cli.output import columns, command, facts

app = typer.Typer(name="config", help="Check and describe the server's settings.", no_args_is_help=True)


@app.command(epilog=EXIT_CODES_HELP)
def check(
    file: Annotated[Path | None, typer.Argument(help="YAML file; left out: environment only.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a settings file together with the environment; show what would hold."""
    with command(as_json) as output:
        from loraplex_server.config import load_config

        settings = load_config(file).model_dump(mode="json")
        output.result({"settings": settings}, facts(settings))


@app.command(epilog=EXIT_CODES_HELP)
def schema(as_json: JsonOption = False) -> None:
    """Describe every setting; with --json as JSON Schema."""
    with command(as_json) as output:
        from loraplex_server.config import ENVIRONMENT_PREFIX, ServerConfig

        document = ServerConfig.model_json_schema()
        rows = [
            (name, f"{ENVIRONMENT_PREFIX}{name.upper()}", _default(entry), entry.get("description", ""))
            for name, entry in document["properties"].items()
        ]
        output.result(document, columns(("setting", "environment", "default", "meaning"), rows))


def _default(entry: dict[str, Any]) -> str:
    value = entry.get("default", "(user data folder)")
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
