"""`loraplex adapters pin`, `unpin` and `warm`: what waits in an adapter slot."""

from __future__ import annotations

from typing import Annotated

import typer

from loraplex_cli.commands.adapters.arguments import NameArgument
from loraplex_cli.commands.adapters.changes import change
from loraplex_cli.commands.adapters.text import residency_cells, short, version_document
from loraplex_cli.options import DEFAULT_SERVER, JsonOption, ServerOption, TimeoutOption
from loraplex_cli.output import columns, command


def pin(
    name: NameArgument,
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Keep what the bare name serves in an adapter slot."""
    with command(as_json) as output:
        change(
            output,
            server,
            timeout,
            lambda adapters: adapters.pin(name),
            lambda adapter: f"{adapter.name} is pinned",
        )


def unpin(
    name: NameArgument,
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Let it be evicted again."""
    with command(as_json) as output:
        change(
            output,
            server,
            timeout,
            lambda adapters: adapters.unpin(name),
            lambda adapter: f"{adapter.name} is not pinned",
        )


def warm(
    names: Annotated[list[str], typer.Argument(help="NAME, NAME@ALIAS or NAME@DIGEST, any number of them.")],
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Bring adapters into adapter slots, so that their next requests need not wait."""
    with command(as_json) as output:
        from loraplex_cli.progress import counting_bar
        from loraplex_client import LoraplexClient

        with (
            LoraplexClient(server, timeout_s=timeout) as client,
            counting_bar("warming", len(names)) as advance,
        ):
            warmed = {}
            for name in names:
                warmed[name] = client.adapters.warm(name)
                advance()
        rows = [
            (name, short(version.digest), *residency_cells(version.residency))
            for name, versions in warmed.items()
            for version in versions
        ]
        output.result(
            {
                "warmed": [
                    {"adapter": name, "versions": [version_document(version) for version in versions]}
                    for name, versions in warmed.items()
                ]
            },
            columns(("adapter", "version", "tier", "read", "copied", "in a slot since"), rows),
        )
