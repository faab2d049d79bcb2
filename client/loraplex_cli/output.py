"""Results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import typer

from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.failures import failure_of


class Output:
    """What one command prints. With `as_json`, exactly one JSON document, on one line."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def result(self, document: Mapping[str, Any], text: str) -> None:
        """Print the command's result: the document, or the text that says the same."""
        typer.echo(json.dumps(document, ensure_ascii=False, default=str) if self.as_json else text)

    def note(self, text: str) -> None:
        """Something on the way to the result."""
        typer.echo(text, err=True)


@contextmanager
def command(as_json: bool, extra: str | None = None) -> Iterator[Output]:
    """Around the body of a command: turns exceptions into a message and an exit code.

    extra  of the distribution, that the command needs and may miss; None: the one that brings the missing library.
    """
    output = Output(as_json)
    try:
        yield output
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        failure = failure_of(error, extra)
        if failure is None:
            raise
        if as_json:
            with suppress(OSError):  # standard error still has the message
                typer.echo(json.dumps(failure.document(), ensure_ascii=False))
        _drop_unwritable_output()
        output.note(f"error: {failure.message} ({failure.reason})")
        if failure.hint and not as_json:
            output.note(failure.hint)
        raise typer.Exit(failure.exit_code) from None


def _drop_unwritable_output() -> None:
    """Let go what standard output holds and does not get rid of: the interpreter would fail on it at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def columns(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Plain text in aligned columns; fit for a terminal and for `awk`."""
    table = [tuple(header), *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )


def facts(pairs: Mapping[str, object]) -> str:
    """`name  value` lines."""
    width = max(map(len, pairs))
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in pairs.items())


def mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"
