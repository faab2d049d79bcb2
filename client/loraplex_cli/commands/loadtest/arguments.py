"""Options of `run` and `saturate`, and what becomes of them."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.failures import CommandError
from loraplex_cli.options import checked_server

if TYPE_CHECKING:
    from loraplex_loadtest.scenario import Scenario
    from loraplex_loadtest.targets.target import TargetAddress

METRICS_PORT = 9464
TOKEN_VARIABLE = "LORAPLEX_LOADTEST_TOKEN"


class Protocol(StrEnum):
    """As loraplex_loadtest.targets.target.TargetKind."""

    LORAPLEX = "loraplex"
    VLLM = "vllm"
    OPENAI = "openai"


ScenarioArgument = Annotated[
    str, typer.Argument(help="A YAML file, or a name of `loraplex loadtest scenarios`.")
]
TargetOption = Annotated[
    str,
    typer.Option(
        "--server",
        envvar="LORAPLEX_SERVER",
        help="host:port; with --protocol openai the URL in front of /v1.",
    ),
]
ProtocolOption = Annotated[Protocol, typer.Option(help="How the server is asked.")]
ModelOption = Annotated[str, typer.Option(help="What a vLLM or OpenAI-compatible server calls the base.")]
MetricsOption = Annotated[
    str | None,
    typer.Option(help=f"Prometheus endpoint; left out: port {METRICS_PORT} of the server; '' reads none."),
]
ContinuousUsageOption = Annotated[
    bool,
    typer.Option(
        "--continuous-usage",
        help="Of an OpenAI-compatible server: ask for a count of tokens in every piece of text, as vLLM knows it.",
    ),
]
RateOption = Annotated[
    float | None, typer.Option(min=1e-6, help="Poisson arrivals of so many requests per second.")
]
UsersOption = Annotated[int | None, typer.Option(min=1, help="A closed loop of so many users instead.")]
DurationOption = Annotated[
    float | None, typer.Option(min=0.1, help="Stretch the scenario to so many seconds.")
]
AdaptersOption = Annotated[
    str | None, typer.Option(help="Names, separated by commas; 'base' is the base model.")
]
ZipfOption = Annotated[float | None, typer.Option(min=1e-6, help="Adapters by Zipf's law with this alpha.")]
PromptTokensOption = Annotated[int | None, typer.Option(min=1, help="Length of every prompt.")]
AnswerTokensOption = Annotated[int | None, typer.Option(min=1, help="Length of every answer.")]
TokenizerOption = Annotated[
    Path | None, typer.Option(help="tokenizer.json, or the base's folder: prompts then have exact lengths.")
]
PackageOption = Annotated[Path | None, typer.Option(help="PEFT folder that the run makes its adapters of.")]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Another seed.")]
ProcessesOption = Annotated[int | None, typer.Option(min=1, help="Generator processes.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE of the scenario, dots reach into sections; may be repeated."),
]
HtmlOption = Annotated[Path | None, typer.Option(help="Write the report as one HTML file.")]
OutOption = Annotated[Path | None, typer.Option(help="Write the result as JSON, for `compare`.")]


def scenario_of(
    name: str,
    *,
    rate: float | None,
    users: int | None,
    duration: float | None,
    adapters: str | None,
    zipf: float | None,
    prompt_tokens: int | None,
    answer_tokens: int | None,
    tokenizer: Path | None,
    package: Path | None,
    seed: int | None,
    processes: int | None,
    changes: list[str] | None,
) -> Scenario:
    """The scenario with what the options change; they concern its first traffic."""
    from loraplex_loadtest.scenario import find_scenario, of_duration, read_scenario

    if rate is not None and users is not None:
        raise CommandError(
            "--rate is an open loop and --users a closed one: give one of them",
            ExitCode.BAD_INPUT,
            "BAD_USAGE",
        )
    first = "traffic.0"
    values: dict[str, Any] = {}
    if rate is not None:
        values[f"{first}.arrivals"] = {"kind": "poisson", "rate": rate}
    if users is not None:
        values[f"{first}.arrivals"] = {"kind": "closed", "users": users}
    if adapters is not None:
        values[f"{first}.adapters.names"] = [name.strip() for name in adapters.split(",")]
    if zipf is not None:
        values[f"{first}.adapters.mix"] = {"kind": "zipf", "alpha": zipf}
    for key, tokens in (("prompt", prompt_tokens), ("answer", answer_tokens)):
        if tokens is not None:
            values[f"{first}.{key}.length"] = {"kind": "fixed", "tokens": tokens}
    plain = {
        "tokenizer": None if tokenizer is None else str(tokenizer),
        "setup.package": None if package is None else str(package),
        "seed": seed,
        "client.processes": processes,
    }
    values |= {key: value for key, value in plain.items() if value is not None}
    values |= dict(map(_change, changes or []))
    scenario = read_scenario(find_scenario(name), values)
    return scenario if duration is None else of_duration(scenario, duration)


def check_folders(*files: Path | None) -> None:
    """Before the load, not behind half an hour of it: can the files be written?"""
    for file in files:
        if file is not None and not file.parent.is_dir():
            raise CommandError(f"{file}: there is no folder {file.parent}", ExitCode.BAD_INPUT, "FILE_ERROR")
        if file is not None and file.is_dir():
            raise CommandError(f"{file} is a folder", ExitCode.BAD_INPUT, "FILE_ERROR")


def address_of(
    server: str, protocol: Protocol, model: str, metrics_url: str | None, continuous_usage: bool
) -> TargetAddress:
    """Where to ask; a bearer token comes from the environment, so that no list of processes shows it.

    Raises BadParameter where a Loraplex server's address is none.
    """
    from loraplex_loadtest.targets.target import TargetAddress, TargetKind

    kind = TargetKind(protocol.value)
    if kind is TargetKind.LORAPLEX:
        checked_server(server)
    if metrics_url is None:
        host = server.rpartition(":")[0] or server
        metrics_url = (
            f"{server.rstrip('/')}/metrics"
            if kind is TargetKind.OPENAI
            else f"http://{host}:{METRICS_PORT}/metrics"
        )
    token = os.environ.get(TOKEN_VARIABLE)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return TargetAddress(
        kind, server, metrics_url, model=model, headers=headers, continuous_usage=continuous_usage
    )


def _change(text: str) -> tuple[str, Any]:
    import yaml

    key, separator, value = text.partition("=")
    if not separator:
        raise CommandError(f"--set takes KEY=VALUE, not {text!r}", ExitCode.BAD_INPUT, "BAD_USAGE")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        return key, value
