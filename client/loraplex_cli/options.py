"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated

import typer


class Device(StrEnum):
    """As loraplex_server.engine.config.Device."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


DEFAULT_SERVER = "127.0.0.1:50051"

# As loraplex_client.requests has them (a test holds them together); its import would bring gRPC into every --help.
MAX_COUNT = 2**32 - 1
MAX_SEED = 2**64 - 1

MAX_TIMEOUT_S = 1e9
"""Much later deadlines overflow in gRPC, and have passed at once."""

_HOST_AND_PORT = re.compile(r"(\[[0-9a-fA-F:.]+(%\w+)?\]|[^\s:/\[\]@]+):(\d{1,5})")


def checked_server(address: str) -> str:
    """Raises BadParameter for what is no address: gRPC would take it for a name, and tell of its resolver."""
    found = _HOST_AND_PORT.fullmatch(address)
    if found is None or not 0 < int(found[3]) < 2**16:
        raise typer.BadParameter(f"'{address}' is no HOST:PORT, as {DEFAULT_SERVER} is")
    return address


def within(low: float, high: float, *, without_low: bool = False) -> Callable[[float | None], float | None]:
    """A callback that raises BadParameter outside of the range; typer's own lets NaN pass, and knows no open end."""

    def checked(value: float | None) -> float | None:
        is_in = value is None or (low <= value <= high and not (without_low and value == low))
        if not is_in:
            raise typer.BadParameter(f"{value} is not in {'(' if without_low else '['}{low:g}, {high:g}]")
        return value

    return checked


JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
ServerOption = Annotated[
    str,
    typer.Option(
        "--server", envvar="LORAPLEX_SERVER", callback=checked_server, help="host:port of the server."
    ),
]
TimeoutOption = Annotated[
    float,
    typer.Option("--timeout", callback=within(0.001, MAX_TIMEOUT_S), help="Seconds until giving up."),
]
