"""`loraplex adapters plan`: whether adapters will fit, before there are any."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from loraplex_cli.commands.adapters.arguments import bad_usage, read_count
from loraplex_cli.commands.adapters.text import yes_no
from loraplex_cli.options import DEFAULT_SERVER, JsonOption, ServerOption, TimeoutOption
from loraplex_cli.output import columns, command, facts, mebibytes

if TYPE_CHECKING:
    from loraplex_client import AdapterPlan, PlannedAdapters


def plan(
    ranks: Annotated[str, typer.Option(help="RANKxCOUNT, joined by commas: 16x100,64x5.")] = "",
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="RANKxCOUNT, or RANKxCOUNT:MODULE,MODULE for adapters of some modules; repeatable."
        ),
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Tell whether adapters will fit, how many are resident at once, and what each adds to a step."""
    with command(as_json) as output:
        groups = [_read_group(word) for word in [*filter(None, ranks.split(",")), *(adapter or ())]]
        if not groups:
            raise bad_usage("give --ranks, e.g. 16x100,64x5, or --adapter")
        from loraplex_client import LoraplexClient

        with LoraplexClient(server, timeout_s=timeout) as client:
            answer = client.adapters.plan(groups)
        document = asdict(answer)
        document["groups"] = [
            {**asdict(asked), **asdict(found)} for asked, found in zip(groups, answer.groups, strict=True)
        ]
        output.result({"plan": document}, _text(groups, answer))


def _read_group(word: str) -> PlannedAdapters:
    from loraplex_client import PlannedAdapters

    size, colon, modules = word.partition(":")
    rank, times, count = size.partition("x")
    if not times or bool(colon) != bool(modules):
        raise bad_usage(f"'{word}' must be RANKxCOUNT or RANKxCOUNT:MODULE,MODULE")
    return PlannedAdapters(
        rank=read_count(rank, "the rank"),
        count=read_count(count, "the count"),
        target_modules=tuple(modules.split(",")) if modules else (),
    )


def _text(groups: list[PlannedAdapters], answer: AdapterPlan) -> str:
    header = ("rank", "count", "modules", "each", "fits", "resident alone", "share of a step")
    rows = [
        (
            asked.rank,
            asked.count,
            ",".join(asked.target_modules) or "all",
            mebibytes(found.bytes_each),
            yes_no(found.fits),
            found.resident_alone,
            f"{found.step_bytes_share:.2%}",
        )
        for asked, found in zip(groups, answer.groups, strict=True)
    ]
    total = sum(group.count for group in groups)
    summary = {
        "resident together": f"{answer.resident_together} of {total}",
        "adapter slots": answer.adapter_slots,
        "arena": mebibytes(answer.arena_bytes),
        "host cache": mebibytes(answer.host_cache_bytes),
        "load from disk": f"{answer.load_seconds:.3f} s" if answer.load_seconds else "not known yet",
    }
    return f"{columns(header, rows)}\n\n{facts(summary)}"
