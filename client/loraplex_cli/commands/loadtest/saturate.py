"""`loraplex loadtest saturate`."""

from __future__ import annotations

from typing import Annotated

import typer

from loraplex_cli.commands.loadtest import arguments as given
from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.failures import CommandError
from loraplex_cli.options import DEFAULT_SERVER, JsonOption
from loraplex_cli.output import command


def saturate(
    scenario: given.ScenarioArgument = "saturation",
    server: given.TargetOption = DEFAULT_SERVER,
    protocol: given.ProtocolOption = given.Protocol.LORAPLEX,
    model: given.ModelOption = "",
    metrics_url: given.MetricsOption = None,
    continuous_usage: given.ContinuousUsageOption = False,
    adapters: given.AdaptersOption = None,
    zipf: given.ZipfOption = None,
    prompt_tokens: given.PromptTokensOption = None,
    answer_tokens: given.AnswerTokensOption = None,
    tokenizer: given.TokenizerOption = None,
    package: given.PackageOption = None,
    seed: given.SeedOption = None,
    processes: given.ProcessesOption = None,
    changes: given.SetOption = None,
    start_rate: Annotated[
        float, typer.Option(min=1e-3, help="Requests per second that the ramp begins with.")
    ] = 1.0,
    max_rate: Annotated[float, typer.Option(min=1e-3, help="The ramp goes no further.")] = 10_000.0,
    trial: Annotated[float, typer.Option(min=1, help="Seconds of one trial.")] = 20.0,
    goodput: Annotated[
        float,
        typer.Option(min=0.01, max=1, help="Share of requests that must meet the scenario's objectives."),
    ] = 0.95,
    tolerance: Annotated[float, typer.Option(min=0.001, max=1, help="Relative width to bisect to.")] = 0.05,
    out: given.OutOption = None,
    html: given.HtmlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the largest rate that the server sustains within the scenario's objectives: a ramp, then bisection."""
    with command(as_json, extra="loadtest") as output:
        import asyncio
        import json

        from loraplex_loadtest.reports.text import saturation_text
        from loraplex_loadtest.saturation.saturate import saturate as find
        from loraplex_loadtest.saturation.saturate import saturation_document
        from loraplex_loadtest.saturation.search import SearchSettings, Trial

        if start_rate > max_rate:
            raise CommandError(
                f"--start-rate {start_rate:g} is above --max-rate {max_rate:g}",
                ExitCode.BAD_INPUT,
                "BAD_USAGE",
            )
        given.check_folders(out, html)
        made = given.scenario_of(
            scenario,
            rate=None,
            users=None,
            duration=None,
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
        settings = SearchSettings(
            start_rate=start_rate, max_rate=max_rate, trial_s=trial, min_goodput=goodput, tolerance=tolerance
        )

        def tell(tried: Trial) -> None:
            verdict = "good" if tried.is_good else "over-saturated" if tried.was_stopped else "bad"
            output.note(f"{tried.rate:.3g}/s: {tried.goodput_share:.1%} within the objectives, {verdict}")

        address = given.address_of(server, protocol, model, metrics_url, continuous_usage)
        found = asyncio.run(find(made, address, settings, tell))
        document = saturation_document(made, settings, found)
        if out:
            out.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
        if html:
            from loraplex_loadtest.reports.html import saturation_page

            html.write_text(saturation_page(document), encoding="utf-8")
        output.result(document, saturation_text(found))
