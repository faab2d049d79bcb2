"""The `loraplex` command. Only typer is imported before a command runs, so that --help is quick."""

from __future__ import annotations

import typer

from loraplex_cli.commands import adapters, base, config, demo, generate, health, serve, train, version
from loraplex_cli.exit_codes import EXIT_CODES_HELP

app = typer.Typer(
    name="loraplex",
    help="One quantized base model answers for many LoRA adapters, over gRPC.",
    epilog=EXIT_CODES_HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich takes longer to import than everything else here
    pretty_exceptions_enable=False,
)
for command in (serve.serve, generate.generate, health.health, demo.demo, version.version):
    app.command(epilog=EXIT_CODES_HELP)(command)
for group in (adapters.app, base.app, train.app, config.app):
    app.add_typer(group)


def main() -> None:
    """Entry point of the console script."""
    app()
