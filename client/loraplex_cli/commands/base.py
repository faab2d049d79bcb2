"""`loraplex base`: the base models on this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from loraplex_cli.exit_codes import EXIT_CODES_HELP
from loraplex_cli.options import Device, JsonOption
from loraplex_cli.output import columns, command, facts, mebibytes

app = typer.Typer(name="base", help="Fetch and inspect base models.", no_args_is_help=True)

BaseArgument = Annotated[
    str | None, typer.Argument(help="Hugging Face folder or id; left out: SmolLM2-135M-Instruct.")
]


@app.command(epilog=EXIT_CODES_HELP)
def fetch(base: BaseArgument = None, as_json: JsonOption = False) -> None:
    """Make a base available here: download and convert it once, then find it at once."""
    with command(as_json) as output:
        from loraplex_cli.progress import stage_bars
        from loraplex_server.base.resolve import resolve_base

        with stage_bars() as progress:
            folder = resolve_base(base, progress)
        output.result({"folder": str(folder)}, str(folder))


@app.command(epilog=EXIT_CODES_HELP)
def inspect(
    base: BaseArgument = None,
    device: Annotated[Device, typer.Option(help="Where it would be resident.")] = Device.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Show parameters, bytes per precision and fingerprint; loads no weights."""
    with command(as_json) as output:
        from loraplex_cli.progress import spinner, stage_bars
        from loraplex_server.base.inspect import inspect_base
        from loraplex_server.base.resolve import resolve_base

        with stage_bars() as progress:
            folder = resolve_base(base, progress)
        with spinner("computing the fingerprint"):
            report = inspect_base(folder, device.value)
        lines = {
            "id": report.base_id,
            "folder": report.folder,
            "architecture": report.architecture,
            "layers": report.num_layers,
            "parameters": f"{report.parameter_count:,}",
            **{f"as {name}": mebibytes(size) for name, size in report.bytes_by_quantization.items()},
            "auto takes": f"{report.auto_quantization}: {report.auto_reason}",
            "fingerprint": report.fingerprint,
            "context tokens": report.max_context_tokens,
            "chat template": report.chat_template_sha256 or "none",
        }
        output.result({**asdict(report), "folder": str(report.folder)}, facts(lines))


@app.command("list", epilog=EXIT_CODES_HELP)
def list_(as_json: JsonOption = False) -> None:
    """List the bases that were converted here."""
    with command(as_json) as output:
        from loraplex_server.cache_dir import default_cache_dir

        folders = sorted(path for path in (default_cache_dir() / "bases").glob("[!.]*") if path.is_dir())
        sizes = [
            sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) for folder in folders
        ]
        bases = [
            {"id": folder.name, "folder": str(folder), "size_bytes": size}
            for folder, size in zip(folders, sizes, strict=True)
        ]
        rows = [(folder.name, mebibytes(size), folder) for folder, size in zip(folders, sizes, strict=True)]
        output.result({"bases": bases}, columns(("id", "size", "folder"), rows))
