"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Device(StrEnum):
    """As loraplex_server.engine.config.Device."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


DEFAULT_SERVER = "127.0.0.1:50051"

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
ServerOption = Annotated[
    str, typer.Option("--server", envvar="LORAPLEX_SERVER", help="host:port of the server.")
]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds until giving up.")]
