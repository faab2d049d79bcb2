"""`loraplex loadtest compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loraplex_cli.commands.loadtest.arguments import HtmlOption
from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.options import JsonOption
from loraplex_cli.output import command


def compare(
    before: Annotated[Path, typer.Argument(help="Result that `run --out` wrote.")],
    after: Annotated[Path, typer.Argument(help="Another one.")],
    threshold: Annotated[float, typer.Option(min=0, help="Relative change that counts, 0.05 is 5 %.")] = 0.05,
    html: HtmlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two results. Ends with 5 if something got worse by more than the threshold, and not by chance."""
    with command(as_json, extra="loadtest") as output:
        from loraplex_loadtest.comparison import compare as changes_of
        from loraplex_loadtest.comparison import differences
        from loraplex_loadtest.reports.text import comparison_text
        from loraplex_loadtest.result import read_result

        first, second = read_result(before), read_result(after)
        changes, notes = changes_of(first, second), differences(first, second)
        if html:
            from loraplex_loadtest.reports.html import comparison_page

            names = (before.stem, after.stem if after.stem != before.stem else f"{after.stem} (2)")
            page = comparison_page(dict(zip(names, (first, second), strict=True)), changes, threshold, notes)
            html.write_text(page, encoding="utf-8")
        worse = [change for change in changes if change.is_regression(threshold)]
        document = {
            "threshold": threshold,
            "is_worse": bool(worse),
            "notes": notes,
            "changes": [change.as_json(threshold) for change in changes],
        }
        output.result(document, comparison_text(changes, threshold, notes))
        if worse:
            output.note(f"error: worse: {', '.join(change.figure for change in worse)}")
            raise typer.Exit(ExitCode.WRONG_RESULT)
