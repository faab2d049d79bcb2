"""`loraplex adapters`: adapters as releases."""

from __future__ import annotations

import typer

from loraplex_cli.commands.adapters import aliases, marks, plan, register, residency, show, traffic, watch
from loraplex_cli.exit_codes import EXIT_CODES_HELP

app = typer.Typer(name="adapters", help="Register, release, show and delete adapters.", no_args_is_help=True)
app.command("list", epilog=EXIT_CODES_HELP)(show.list_)
for _command in (
    register.register,
    register.verify,
    show.show,
    aliases.promote,
    aliases.rollback,
    aliases.unalias,
    traffic.split,
    traffic.shadow,
    residency.pin,
    residency.unpin,
    residency.warm,
    plan.plan,
    marks.label,
    marks.deprecate,
    marks.delete,
    watch.watch,
):
    app.command(epilog=EXIT_CODES_HELP)(_command)
