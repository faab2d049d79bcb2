"""`loraplex health`: for people, scripts and container health checks."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import typer

from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.failures import CommandError
from loraplex_cli.options import DEFAULT_SERVER, JsonOption, ServerOption, TimeoutOption
from loraplex_cli.output import command


def health(
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait until the server serves; 0 asks once.")
    ] = 0.0,
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Ask by grpc.health.v1 whether a server serves: 0 if so, 1 if it loads or drains, 3 if nothing answers."""
    with command(as_json) as output:
        from loraplex_cli.progress import spinner
        from loraplex_client import LoraplexClient, UnavailableError

        with LoraplexClient(server) as client:
            if wait:
                with spinner(f"waiting for {server}"), suppress(UnavailableError):
                    client.wait_until_ready(wait)
            if not client.is_serving(timeout):
                raise CommandError(
                    f"the server at {server} is up but does not serve now: it loads, drains or restarts its engine",
                    ExitCode.FAILURE,
                    "NOT_SERVING",
                )
        output.result({"server": server, "serving": True}, f"{server} serves")
