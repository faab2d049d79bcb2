"""`loraplex adapters promote`, `rollback` and `unalias`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from loraplex_cli.commands.adapters.arguments import AliasOption, NameArgument, VersionArgument
from loraplex_cli.commands.adapters.changes import change
from loraplex_cli.commands.adapters.text import short
from loraplex_cli.options import DEFAULT_SERVER, JsonOption, ServerOption, TimeoutOption
from loraplex_cli.output import command

if TYPE_CHECKING:
    from loraplex_client import Adapter

STABLE = "stable"


def promote(
    name: NameArgument,
    version: VersionArgument,
    alias: AliasOption = STABLE,
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Let an alias point at a version; new requests take it at once. Moving "stable" ends a split."""
    with command(as_json) as output:
        change(
            output,
            server,
            timeout,
            lambda adapters: adapters.promote(name, version, alias),
            lambda adapter: _pointing(adapter, alias),
        )


def rollback(
    name: NameArgument,
    alias: AliasOption = STABLE,
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Let an alias point again at the version before; repeated, one step further back each time."""
    with command(as_json) as output:
        change(
            output,
            server,
            timeout,
            lambda adapters: adapters.rollback(name, alias),
            lambda adapter: _pointing(adapter, alias),
        )


def unalias(
    name: NameArgument,
    alias: Annotated[str, typer.Argument(help="The alias to remove.")],
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Remove an alias; its version stays."""
    with command(as_json) as output:
        change(
            output,
            server,
            timeout,
            lambda adapters: adapters.delete_alias(name, alias),
            lambda adapter: f"{adapter.name}@{alias} is gone",
        )


def _pointing(adapter: Adapter, alias: str) -> str:
    return f"{adapter.name}@{alias} is {short(adapter.aliases.get(alias, ''))}"
