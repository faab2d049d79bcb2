"""`loraplex loadtest selftest`."""

from __future__ import annotations

import typer

from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.options import JsonOption
from loraplex_cli.output import columns, command
from loraplex_cli.progress import stage_bars


def selftest(as_json: JsonOption = False) -> None:
    """Measure servers whose latency is known, and say how well that went. Ends with 5 past an error of 2 %."""
    with command(as_json, extra="loadtest") as output:
        import asyncio

        from loraplex_loadtest.selfcheck.selftest import selftest as check
        from loraplex_loadtest.selfcheck.selftest import selftest_document

        with stage_bars(are_shown=not as_json) as report:
            checks, repeated = asyncio.run(check(lambda stage, done, total: report("self-test", done, total)))
        rows = [
            (
                one.name,
                f"{one.expected:.6g} {one.unit}",
                f"{one.found:.6g} {one.unit}",
                f"{one.error:.2%}",
                "" if one.is_right else "WRONG",
            )
            for one in checks
        ]
        output.result(
            selftest_document(checks, repeated), columns(("parameter", "is", "was found", "error", ""), rows)
        )
        if not all(one.is_right for one in checks):
            raise typer.Exit(ExitCode.WRONG_RESULT)
