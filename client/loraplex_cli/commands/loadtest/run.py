"""`loraplex loadtest run`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraplex_cli.commands.loadtest import arguments as given
from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.options import DEFAULT_SERVER, JsonOption
from loraplex_cli.output import Output, command

if TYPE_CHECKING:
    from loraplex_loadtest.conditions import Verdict
    from loraplex_loadtest.run import Outcome
    from loraplex_loadtest.scenario import Scenario
    from loraplex_loadtest.targets.target import TargetAddress


def run(
    scenario: given.ScenarioArgument = "smoke",
    server: given.TargetOption = DEFAULT_SERVER,
    protocol: given.ProtocolOption = given.Protocol.LORAPLEX,
    model: given.ModelOption = "",
    metrics_url: given.MetricsOption = None,
    continuous_usage: given.ContinuousUsageOption = False,
    rate: given.RateOption = None,
    users: given.UsersOption = None,
    duration: given.DurationOption = None,
    adapters: given.AdaptersOption = None,
    zipf: given.ZipfOption = None,
    prompt_tokens: given.PromptTokensOption = None,
    answer_tokens: given.AnswerTokensOption = None,
    tokenizer: given.TokenizerOption = None,
    package: given.PackageOption = None,
    seed: given.SeedOption = None,
    processes: given.ProcessesOption = None,
    changes: given.SetOption = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            help="Condition, e.g. 'ttft_p90>500ms': 5 if it holds, or if samples are too few to tell; may be repeated."
        ),
    ] = None,
    out: given.OutOption = None,
    html: given.HtmlOption = None,
    requests: Annotated[
        Path | None, typer.Option(help="Write every request: CSV if the name ends so, else JSON lines.")
    ] = None,
    hdr: Annotated[Path | None, typer.Option(help="Write latencies as an HdrHistogram log.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write conditions as JUnit XML.")] = None,
    push: Annotated[str | None, typer.Option(help="URL of a Prometheus push gateway.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and send nothing.")] = False,
    allow_invalid: Annotated[
        bool, typer.Option("--allow-invalid", help="0 even if the generator was the bottleneck.")
    ] = False,
    live: Annotated[bool, typer.Option(help="Show the run as it goes, on a terminal.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Run a scenario. Ends with 5 if a condition holds that must not, or if the generator itself was the bottleneck."""
    with command(as_json, extra="loadtest") as output:
        import asyncio

        from loraplex_loadtest.conditions import judge, parse_condition
        from loraplex_loadtest.reports.text import result_text
        from loraplex_loadtest.result import result_document

        made = given.scenario_of(
            scenario,
            rate=rate,
            users=users,
            duration=duration,
            adapters=adapters,
            zipf=zipf,
            prompt_tokens=prompt_tokens,
            answer_tokens=answer_tokens,
            tokenizer=tokenizer,
            package=package,
            seed=seed,
            processes=processes,
            changes=changes,
        )
        conditions = [parse_condition(text) for text in (*made.fail_if, *(fail_if or ()))]
        given.check_folders(out, html, requests, hdr, junit)
        address = given.address_of(server, protocol, model, metrics_url, continuous_usage)
        if dry_run:
            _print_plan(made, address, output)
            return
        outcome = asyncio.run(_watched(made, address, shows=live and not as_json, output=output))
        document = result_document(outcome)
        verdicts = [judge(condition, document) for condition in conditions]
        document["conditions"] = [verdict.as_json() for verdict in verdicts]
        try:
            _write(outcome, document, verdicts, out=out, html=html, requests=requests, hdr=hdr, junit=junit)
            if push:
                from loraplex_loadtest.reports.push import push_figures

                push_figures(document, push)
        except Exception:
            output.note(result_text(document))  # the figures are not lost with the file that took none
            raise
        output.result(document, result_text(document))
        for verdict in verdicts:
            if verdict.fails:
                output.note(f"error: {verdict.text()}")
        if any(verdict.fails for verdict in verdicts) or not (document["is_valid"] or allow_invalid):
            raise typer.Exit(ExitCode.WRONG_RESULT)


async def _watched(scenario: Scenario, address: TargetAddress, *, shows: bool, output: Output) -> Outcome:
    from rich.console import Console

    from loraplex_loadtest.reports.live import LiveView
    from loraplex_loadtest.run import run_scenario

    console = Console(stderr=True)
    if shows and console.is_terminal:
        with LiveView(console) as view:
            return await run_scenario(scenario, address, view)
    output.note(f"running {scenario.name}: {len(scenario.traffic)} sources of requests")
    return await run_scenario(scenario, address)


def _print_plan(scenario: Scenario, address: TargetAddress, output: Output) -> None:
    import asyncio

    from loraplex_cli.output import columns
    from loraplex_loadtest.run import plan_run

    plan = asyncio.run(plan_run(scenario, address))
    rows = [
        (
            f"{one.at_s:.3f}" if one.user < 0 else f"user {one.user}",
            one.tenant,
            one.adapter or "base",
            one.prompt_tokens,
            one.max_tokens,
        )
        for one in plan.requests
    ]
    text = columns(("at", "tenant", "adapter", "prompt", "answer"), rows)
    output.result({"scenario": scenario.name, "duration_s": plan.duration_s, "requests": plan.rows()}, text)


def _write(
    outcome: Outcome,
    document: Mapping[str, Any],
    verdicts: list[Verdict],
    *,
    out: Path | None,
    html: Path | None,
    requests: Path | None,
    hdr: Path | None,
    junit: Path | None,
) -> None:
    import json

    if out:
        out.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    if html:
        from loraplex_loadtest.reports.html import run_page

        html.write_text(run_page(document, verdicts), encoding="utf-8")
    if requests:
        from loraplex_loadtest.reports.files import write_requests

        write_requests(outcome, requests)
    if hdr:
        from loraplex_loadtest.reports.files import write_hdr_log
        from loraplex_loadtest.result import samples_of

        write_hdr_log(samples_of(outcome), hdr)
    if junit:
        from loraplex_loadtest.reports.junit import junit_xml

        junit.write_text(junit_xml(document, verdicts), encoding="utf-8")
