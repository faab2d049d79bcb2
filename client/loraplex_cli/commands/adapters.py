"""`loraplex adapters`: what the server has registered."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraplex_cli.exit_codes import EXIT_CODES_HELP, ExitCode
from loraplex_cli.failures import CommandError
from loraplex_cli.options import DEFAULT_SERVER, JsonOption, ServerOption, TimeoutOption
from loraplex_cli.output import columns, command, facts, mebibytes

if TYPE_CHECKING:
    from loraplex_client import Adapter

app = typer.Typer(name="adapters", help="Register, show and delete adapters.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="Name of the adapter, e.g. finance/faq.")]


@app.command(epilog=EXIT_CODES_HELP)
def register(
    name: NameArgument,
    folder: Annotated[
        Path, typer.Argument(help="PEFT folder: adapter_config.json, adapter_model.safetensors.")
    ],
    on_server: Annotated[
        bool, typer.Option("--on-server", help="The folder lies on the server's machine; nothing is sent.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, store nothing.")] = False,
    expect_digest: Annotated[str, typer.Option(help="SHA-256 that the package must have.")] = "",
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 300.0,
    as_json: JsonOption = False,
) -> None:
    """Send an adapter to the server, which checks it against its base model."""
    with command(as_json) as output:
        if on_server and expect_digest:
            raise CommandError(
                "--expect-digest checks what is sent; with --on-server nothing is",
                ExitCode.BAD_INPUT,
                "BAD_USAGE",
            )
        from loraplex_cli.progress import spinner, stage_bars
        from loraplex_client import LoraplexClient

        with LoraplexClient(server, timeout_s=timeout) as client:
            if on_server:
                with spinner(f"registering {name}"):
                    adapter = client.adapters.create(name, folder.absolute(), validate_only=dry_run)
            else:
                with stage_bars() as progress:
                    adapter = client.adapters.upload(
                        name,
                        folder,
                        validate_only=dry_run,
                        expected_digest=expect_digest,
                        on_progress=partial(progress, f"sending {name}"),
                    )
        output.result({"adapter": document(adapter), "stored": not dry_run}, facts(_lines(adapter)))


@app.command("list", epilog=EXIT_CODES_HELP)
def list_(
    server: ServerOption = DEFAULT_SERVER, timeout: TimeoutOption = 60.0, as_json: JsonOption = False
) -> None:
    """List the registered adapters by name."""
    with command(as_json) as output:
        from loraplex_client import LoraplexClient

        with LoraplexClient(server, timeout_s=timeout) as client:
            adapters = list(client.adapters.list())
        rows = [
            (
                adapter.name,
                adapter.state.value,
                adapter.rank,
                mebibytes(adapter.size_bytes),
                "yes" if adapter.is_resident else "no",
                adapter.digest[:12],
            )
            for adapter in adapters
        ]
        header = ("name", "state", "rank", "size", "resident", "digest")
        output.result({"adapters": [document(adapter) for adapter in adapters]}, columns(header, rows))


@app.command(epilog=EXIT_CODES_HELP)
def show(
    name: NameArgument,
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Show one adapter."""
    with command(as_json) as output:
        from loraplex_client import LoraplexClient

        with LoraplexClient(server, timeout_s=timeout) as client:
            adapter = client.adapters.get(name)
        output.result({"adapter": document(adapter)}, facts(_lines(adapter)))


@app.command(epilog=EXIT_CODES_HELP)
def delete(
    name: NameArgument,
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Delete an adapter; requests that run on it finish."""
    with command(as_json) as output:
        from loraplex_client import LoraplexClient

        with LoraplexClient(server, timeout_s=timeout) as client:
            client.adapters.delete(name)
        output.result({"deleted": name}, f"deleted {name}")


def document(adapter: Adapter) -> dict[str, Any]:
    """The adapter as JSON values."""
    fields = asdict(adapter)
    fields["create_time"] = adapter.create_time.isoformat()
    return fields


def _lines(adapter: Adapter) -> dict[str, object]:
    return {
        **document(adapter),
        "state": adapter.state.value,
        "size_bytes": f"{adapter.size_bytes} ({mebibytes(adapter.size_bytes)})",
        "target_modules": ", ".join(adapter.target_modules),
    }
