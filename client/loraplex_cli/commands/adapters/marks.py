"""`loraplex adapters label`, `deprecate` and `delete`."""

from __future__ import annotations

from typing import Annotated

import typer

from loraplex_cli.commands.adapters.arguments import DigestArgument, NameArgument, bad_usage, read_pairs
from loraplex_cli.commands.adapters.changes import change
from loraplex_cli.commands.adapters.text import pairs_text
from loraplex_cli.options import DEFAULT_SERVER, JsonOption, ServerOption, TimeoutOption
from loraplex_cli.output import command


def label(
    name: NameArgument,
    labels: Annotated[
        list[str] | None, typer.Argument(help="KEY=VALUE, any number of them; they replace all labels.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove all labels.")] = False,
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Replace an adapter's labels, all of them."""
    with command(as_json) as output:
        if bool(labels) == clear:
            raise bad_usage("give labels, e.g. team=search, or --clear to remove all")
        pairs = read_pairs(labels or ())
        change(
            output,
            server,
            timeout,
            lambda adapters: adapters.update_labels(name, pairs),
            lambda adapter: f"{adapter.name}: {pairs_text(adapter.labels) or 'no labels'}",
        )


def deprecate(
    name: NameArgument,
    version: DigestArgument,
    undo: Annotated[bool, typer.Option("--undo", help="Take the mark back.")] = False,
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Mark a version as one to move away from: it is served where it is named, and not promoted any more."""
    with command(as_json) as output:
        change(
            output,
            server,
            timeout,
            lambda adapters: adapters.deprecate(name, version, undo=undo),
            lambda adapter: f"{adapter.name}@{version} is {'no longer ' if undo else ''}deprecated",
        )


def delete(
    name: Annotated[
        str, typer.Argument(help="NAME, with all its versions; or NAME@DIGEST, one version of it.")
    ],
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Delete an adapter or one of its versions; requests that run on it finish."""
    with command(as_json) as output:
        from loraplex_client import LoraplexClient

        adapter, at, version = name.partition("@")
        with LoraplexClient(server, timeout_s=timeout) as client:
            if at:
                client.adapters.delete_version(adapter, version)
            else:
                client.adapters.delete(adapter)
        output.result({"deleted": name}, f"deleted {name}")
