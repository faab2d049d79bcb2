"""`loraplex loadtest scenarios`."""

from __future__ import annotations

from typing import Annotated

import typer

from loraplex_cli.options import JsonOption
from loraplex_cli.output import columns, command


def scenarios(
    name: Annotated[
        str | None, typer.Argument(help="Print this one as YAML, to begin your own with.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the ready scenarios."""
    with command(as_json, extra="loadtest") as output:
        from loraplex_loadtest.scenario import find_scenario, read_scenario, ready_scenarios

        if name is not None:
            file = find_scenario(name)
            made = read_scenario(file)
            output.result(made.model_dump(mode="json"), file.read_text(encoding="utf-8").rstrip())
            return
        found = {ready: read_scenario(file) for ready, file in ready_scenarios().items()}
        output.result(
            {"scenarios": [{"name": key, "description": one.description} for key, one in found.items()]},
            columns(("name", "what it does"), [(key, one.description) for key, one in found.items()]),
        )
