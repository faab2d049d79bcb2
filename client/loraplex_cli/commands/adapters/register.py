"""`loraplex adapters register` and `verify`: a package is proved by the server, then stored, or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraplex_cli.commands.adapters.arguments import (
    ExpectDigestOption,
    NameArgument,
    bad_usage,
    read_digest,
    read_pairs,
)
from loraplex_cli.commands.adapters.local_package import refuse_pickles
from loraplex_cli.commands.adapters.text import adapter_document, version_document, version_facts
from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.failures import CommandError, api_details
from loraplex_cli.options import DEFAULT_SERVER, JsonOption, ServerOption, TimeoutOption
from loraplex_cli.output import command, facts

if TYPE_CHECKING:
    from loraplex_client import RegisteredVersion
    from loraplex_client.adapter_requests import RegisterOptions

SourceArgument = Annotated[
    str,
    typer.Argument(
        help="PEFT folder (adapter_config.json, adapter_model.safetensors), or the URL of one, which the server reads."
    ),
]
OnServerOption = Annotated[
    bool, typer.Option("--on-server", help="The folder lies on the server's machine; nothing is sent.")
]


def register(
    name: NameArgument,
    source: SourceArgument,
    on_server: OnServerOption = False,
    add_version: Annotated[
        bool, typer.Option("--add-version", help="Add a version if the name is in use; no alias moves.")
    ] = False,
    promote: Annotated[
        bool, typer.Option("--promote", help="Add a version if the name is in use, and make it stable.")
    ] = False,
    alias: Annotated[str, typer.Option(help="An alias that shall point at it too, e.g. canary.")] = "",
    label: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE mark of a new adapter; repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Prove everything, store nothing.")] = False,
    expect_digest: ExpectDigestOption = None,
    request_id: Annotated[
        str, typer.Option(help="Given again, the same registration happens once; left out: drawn.")
    ] = "",
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 300.0,
    as_json: JsonOption = False,
) -> None:
    """Give an adapter to the server, which proves it on its base model and keeps it as a version."""
    with command(as_json) as output:
        if add_version and promote:
            raise bad_usage("--add-version and --promote exclude each other: --promote adds a version too")
        options: RegisterOptions = {
            "on_existing": "promote" if promote else "add_version" if add_version else "refuse",
            "alias": alias,
            "labels": read_pairs(label or ()),
            "validate_only": dry_run,
            "expected_digest": read_digest(expect_digest),
            "request_id": request_id,
        }
        made = _register(server, timeout, name, source, on_server, options)
        output.result(
            {
                "adapter": adapter_document(made.adapter),
                "version": version_document(made.version),
                "stored": not dry_run,
            },
            f"dry run: '{made.adapter.name}' would be registered, and nothing was stored\n"
            + facts(_verified(made))
            if dry_run
            else facts(version_facts(made.adapter, made.version)),
        )


def verify(
    source: SourceArgument,
    on_server: OnServerOption = False,
    name: Annotated[
        str, typer.Option(help="Adapter that it is meant for; left out: any that is not there yet.")
    ] = "",
    expect_digest: ExpectDigestOption = None,
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 300.0,
    as_json: JsonOption = False,
) -> None:
    """Let the server prove a package on its base model without keeping it. Ends with 2 if it is refused."""
    with command(as_json) as output:
        from loraplex_client import InvalidRequestError, PreconditionError
        from loraplex_client.adapter_requests import drawn_id

        options: RegisterOptions = {
            "on_existing": "add_version",
            "validate_only": True,
            "expected_digest": read_digest(expect_digest),
        }
        name = name or f"verify-{drawn_id()}"
        try:
            made = _register(server, timeout, name, source, on_server, options)
        except (InvalidRequestError, PreconditionError) as error:
            details = api_details(error)
            raise CommandError(error.message, ExitCode.BAD_INPUT, error.reason, details) from None
        output.result(
            {"ok": True, "version": version_document(made.version)},
            "pass\n" + facts(_verified(made)),
        )


def _verified(made: RegisteredVersion) -> dict[str, object]:
    """What was found out about the package, without what only a stored one has."""
    left_out = ("adapter", "aliases", "registered", "residency")
    return {
        key: value for key, value in version_facts(made.adapter, made.version).items() if key not in left_out
    }


def _register(
    server: str, timeout_s: float, name: str, source: str, on_server: bool, options: RegisterOptions
) -> RegisteredVersion:
    """By whichever way the source asks for, with progress."""
    from loraplex_cli.progress import spinner, stage_bars
    from loraplex_client import LoraplexClient

    is_url = "://" in source
    if is_url and on_server:
        raise bad_usage("--on-server takes a folder: a URL is read by the server anyway")
    if not is_url and not on_server:
        refuse_pickles(Path(source))
    with LoraplexClient(server, timeout_s=timeout_s) as client:
        if is_url:
            with spinner(f"proving {source}"):
                return client.adapters.create(name, url=source, **options)
        if on_server:
            with spinner(f"proving {source}"):
                return client.adapters.create(name, Path(source).absolute(), **options)
        with stage_bars() as progress:

            def report(sent: int, total: int) -> None:
                progress("sending", sent, total)
                progress("proving", 0, 1)  # keeps the display until the server has answered

            made = client.adapters.upload(name, source, on_progress=report, **options)
            progress("proving", 1, 1)
            return made
