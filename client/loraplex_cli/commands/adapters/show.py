"""`loraplex adapters list` and `show`."""

from __future__ import annotations

from typing import Annotated

import typer

from loraplex_cli.commands.adapters.text import (
    adapter_document,
    adapter_text,
    adapters_text,
    version_document,
    version_facts,
)
from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.failures import CommandError
from loraplex_cli.options import DEFAULT_SERVER, JsonOption, ServerOption, TimeoutOption
from loraplex_cli.output import command, facts


def list_(
    tenant: Annotated[str, typer.Option(help="Only adapters of this tenant.")] = "",
    filter_: Annotated[
        str,
        typer.Option(
            "--filter",
            help="Terms joined by AND: state, alias, digest, pinned, labels.KEY, name; e.g. 'pinned = true'.",
        ),
    ] = "",
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """List the registered adapters by name."""
    with command(as_json) as output:
        from loraplex_client import LoraplexClient

        parent = f"tenants/{tenant}" if tenant else ""
        with LoraplexClient(server, timeout_s=timeout) as client:
            adapters = list(client.adapters.list(parent=parent, filter=filter_))
        if not (adapters or as_json):
            output.note(_none_there(tenant, filter_))
        output.result(
            {"adapters": [adapter_document(adapter) for adapter in adapters]}, adapters_text(adapters)
        )


def _none_there(tenant: str, filter_: str) -> str:
    """The table of none is its header, which looks like a table that was cut off."""
    whose = f" of tenant '{tenant}'" if tenant else ""
    which = " that the filter lets pass" if filter_ else ""
    return f"there are no adapters{whose}{which}"


def show(
    name: Annotated[str, typer.Argument(help="NAME, or NAME@ALIAS or NAME@DIGEST for one version.")],
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Show one adapter with its versions, or one version."""
    with command(as_json) as output:
        from loraplex_client import LoraplexClient

        name, at, target = name.partition("@")
        with LoraplexClient(server, timeout_s=timeout) as client:
            adapter = client.adapters.get(name)
        document = {"adapter": adapter_document(adapter)}
        if not at:
            output.result(document, adapter_text(adapter))
            return
        try:
            version = adapter.version(target)
        except KeyError:
            raise CommandError(
                f"adapter '{adapter.name}' has no version or alias '{target}'",
                ExitCode.REFUSED,
                "ADAPTER_NOT_FOUND",
                {"status": "NOT_FOUND"},
            ) from None
        document["version"] = version_document(version)
        output.result(document, facts(version_facts(adapter, version)))
