"""`loraplex version`, and `loraplex --version`."""

from __future__ import annotations

from typing import Annotated

import typer

from loraplex_cli.options import JsonOption
from loraplex_cli.output import command


def version(as_json: JsonOption = False) -> None:
    """Show the versions of Loraplex and Python."""
    with command(as_json) as output:
        import platform
        from importlib.metadata import version as distribution_version

        ours = distribution_version("loraplex")
        document = {"loraplex": ours, "python": platform.python_version()}
        output.result(document, f"loraplex {ours} (Python {document['python']})")


def _show_and_end(is_asked: bool) -> None:
    if is_asked:
        version()
        raise typer.Exit


def root(
    is_asked: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_and_end,
            is_eager=True,
            help="Show the versions of Loraplex and Python.",
        ),
    ] = False,
) -> None:
    """One quantized base model answers for many LoRA adapters, over gRPC."""
