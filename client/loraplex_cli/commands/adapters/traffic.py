"""`loraplex adapters split` and `shadow`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from loraplex_cli.commands.adapters.arguments import EndOption, NameArgument, bad_usage, read_traffic
from loraplex_cli.commands.adapters.changes import change
from loraplex_cli.commands.adapters.text import traffic_text
from loraplex_cli.options import DEFAULT_SERVER, JsonOption, ServerOption, TimeoutOption
from loraplex_cli.output import command

if TYPE_CHECKING:
    from loraplex_client import Adapter


def split(
    name: NameArgument,
    shares: Annotated[
        list[str] | None, typer.Argument(help="TARGET=WEIGHT for each alias or digest: stable=90 canary=10.")
    ] = None,
    end: EndOption = False,
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Spread the requests of the bare name over versions by weight."""
    with command(as_json) as output:
        if bool(shares) == end:
            raise bad_usage("give shares, e.g. stable=90 canary=10, or --end")
        traffic = read_traffic(shares or ())
        change(
            output,
            server,
            timeout,
            lambda adapters: adapters.split(name, traffic),
            lambda adapter: f"{adapter.name}: {traffic_text(adapter)}",
        )


def shadow(
    name: NameArgument,
    target: Annotated[str, typer.Argument(help="Alias or digest that answers unseen.")] = "",
    percent: Annotated[
        int, typer.Option(min=1, max=100, help="Of the bare name's requests, how many it answers too.")
    ] = 100,
    end: EndOption = False,
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Let a version answer unseen: its answers are compared with the served ones and discarded."""
    with command(as_json) as output:
        if bool(target) == end:
            raise bad_usage("give an alias or a digest, or --end")
        change(
            output,
            server,
            timeout,
            lambda adapters: adapters.set_shadow(name, target, percent),
            _shadow_text,
        )


def _shadow_text(adapter: Adapter) -> str:
    if adapter.shadow is None:
        return f"{adapter.name} has no shadow"
    return f"{adapter.name}: {adapter.shadow.target} answers {adapter.shadow.percent} % unseen"
