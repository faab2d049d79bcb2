"""`loraplex loadtest`: latency and concurrency of many adapters, measured."""

from __future__ import annotations

import typer

from loraplex_cli.commands.loadtest import compare, run, saturate, scenarios, selftest
from loraplex_cli.exit_codes import EXIT_CODES_HELP

app = typer.Typer(
    name="loadtest",
    help="Load a server and say how it does; docs/loadtest.md tells how.",
    no_args_is_help=True,
)
for _command in (run.run, saturate.saturate, compare.compare, selftest.selftest, scenarios.scenarios):
    app.command(epilog=EXIT_CODES_HELP)(_command)
