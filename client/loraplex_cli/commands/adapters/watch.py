"""`loraplex adapters watch`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from loraplex_cli.commands.adapters.text import event_document, short
from loraplex_cli.interruptible import interruptible
from loraplex_cli.options import DEFAULT_SERVER, ServerOption
from loraplex_cli.output import command

if TYPE_CHECKING:
    from loraplex_client import AdapterEvent


def watch(
    parent: Annotated[
        str, typer.Argument(help="An adapter's name, or tenants/TENANT; left out: everything.")
    ] = "",
    from_: Annotated[
        str,
        typer.Option(
            "--from",
            help="Go on behind this event's token; 0: from the oldest event kept; left out: from now.",
        ),
    ] = "",
    server: ServerOption = DEFAULT_SERVER,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.001, help="Seconds without a server until giving up.")
    ] = 60.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document per event, each on a line.")
    ] = False,
) -> None:
    """Print what changes in the registry, until interrupted."""
    with command(as_json) as output:
        from loraplex_client import LoraplexClient

        last_token = ""
        try:
            with (
                LoraplexClient(server) as client,
                client.adapters.watch(parent, from_, patience_s=timeout) as events,
            ):
                for event, last_token in interruptible(events):
                    output.result({"event": event_document(event), "resume_token": last_token}, _line(event))
        finally:
            if last_token:
                output.note(f"go on with --from {last_token}")


def _line(event: AdapterEvent) -> str:
    at = f"@{','.join(event.aliases)}" if event.aliases else ""
    words = (
        event.time.isoformat(timespec="milliseconds"),
        event.kind.value,
        event.name + at,
        short(event.digest),
    )
    return "  ".join(filter(None, words))
