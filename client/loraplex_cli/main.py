"""The `loraplex` command. Only typer is imported before a command runs, so that --help is quick."""

from __future__ import annotations

import json
import sys

import typer
from typer.exceptions import Abort, TyperException

from loraplex_cli.commands import (
    adapters,
    base,
    config,
    demo,
    generate,
    health,
    loadtest,
    serve,
    train,
    version,
)
from loraplex_cli.exit_codes import EXIT_CODES_HELP, ExitCode

app = typer.Typer(
    name="loraplex",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich takes longer to import than everything else here
    pretty_exceptions_enable=False,
)
app.callback(epilog=EXIT_CODES_HELP)(version.root)
for command in (serve.serve, generate.generate, health.health, demo.demo, version.version):
    app.command(epilog=EXIT_CODES_HELP)(command)
for group in (adapters.app, base.app, train.app, loadtest.app, config.app):
    app.add_typer(group)


def main() -> None:
    """Entry point of the console script."""
    if "--json" not in sys.argv:
        app()
        return
    # Whoever asked for JSON gets it for a misspelt option too.
    try:
        sys.exit(app(standalone_mode=False))
    except TyperException as error:
        message = error.format_message().partition("\n")[0]  # without options, the whole help
        told = {"exit_code": int(ExitCode.BAD_INPUT), "reason": "BAD_USAGE", "message": message}
        print(json.dumps({"error": told}))  # noqa: T201 (no command is there that could)
        print(message, file=sys.stderr)  # noqa: T201
        sys.exit(ExitCode.BAD_INPUT)
    except Abort:
        sys.exit(ExitCode.INTERRUPTED)
