"""`loraplex train`: from documents to a proven adapter."""

from __future__ import annotations

import typer

from loraplex_cli.commands.train import data, jobs, judge, looks, package, plan, recipe, run
from loraplex_cli.exit_codes import EXIT_CODES_HELP

app = typer.Typer(name="train", help="Turn documents into a proven adapter.", no_args_is_help=True)
for _command in (
    plan.plan,
    run.run,
    looks.preflight,
    looks.samples,
    judge.compare,
    judge.gate,
    package.package,
    package.merge,
    package.register,
):
    app.command(epilog=EXIT_CODES_HELP)(_command)
app.command("eval", epilog=EXIT_CODES_HELP)(judge.evaluate)
for _group in (data.app, recipe.app, jobs.app):
    app.add_typer(_group)
