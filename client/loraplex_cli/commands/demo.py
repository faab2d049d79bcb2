"""`loraplex demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.options import JsonOption
from loraplex_cli.output import command


def demo(
    adapters: Annotated[
        Path | None,
        typer.Option(help="Folder with <domain>/package and <domain>/eval.jsonl; left out: ./adapters."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Base the adapters were trained on; left out: SmolLM2-135M-Instruct.")
    ] = None,
    streams: Annotated[int, typer.Option(min=4, max=256, help="Streams of the mixed burst.")] = 48,
    as_json: JsonOption = False,
) -> None:
    """Serve three domains from one resident base, compare answers, then measure a mixed burst.

    Ends with 5 if an adapter's answer is wrong or a stream fails.
    """
    with command(as_json) as output:
        from loraplex_cli.demo.questions import find_adapters, read_domains
        from loraplex_cli.demo.report import demo_text
        from loraplex_cli.demo.run import run_demo

        report = run_demo(read_domains(find_adapters(adapters)), base, streams, output.note)
        output.result(report.document(), demo_text(report))
        for problem in report.problems():
            output.note(f"error: {problem}")
        if report.problems():
            raise typer.Exit(ExitCode.WRONG_RESULT)
