"""`loraplex train package`, `merge` and `register`: from a run to what is served."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from loraplex_cli.options import DEFAULT_SERVER, JsonOption, ServerOption, TimeoutOption
from loraplex_cli.output import command, facts, mebibytes

PackageArgument = Annotated[Path, typer.Argument(help="Folder that `train package` wrote.")]


class MergedDtypeOption(StrEnum):
    """What a merged model is stored in."""

    BF16 = "bf16"
    FP32 = "fp32"


def package(
    run: Annotated[Path, typer.Argument(help="Run folder of `train run`.")],
    output_folder: Annotated[
        Path | None, typer.Option("--output", help="Left out: 'package' in the run folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the package of a finished run, and prove it as a server would."""
    with command(as_json, extra="trainer") as output:
        from loraplex_adapters.package import read_package
        from loraplex_cli.progress import spinner, stage_bars
        from loraplex_server.base.resolve import resolve_base
        from loraplex_trainer.packaging.package import package_run
        from loraplex_trainer.recipe.document import read_recipe
        from loraplex_trainer.train.run_folder import RunFolder

        folder = RunFolder(run)
        recipe = read_recipe(folder.recipe)
        with stage_bars() as progress:
            base = resolve_base(recipe.base.model, progress)
        with spinner("packaging"):
            written = package_run(folder, base, output_folder)
            read = read_package(written)
        size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
        document = {
            "package": str(written),
            "digest": read.digest,
            "rank": read.config.rank,
            "size_bytes": read.size_bytes,
            "share_of_base": round(read.size_bytes / size, 6),
        }
        shown = {
            **document,
            "size_bytes": mebibytes(read.size_bytes),
            "share_of_base": f"{read.size_bytes / size:.2%}",
        }
        output.result(document, facts(shown))


def merge(
    package: PackageArgument,
    output_folder: Annotated[
        Path, typer.Option("--output", help="Folder of the merged model; must not exist.")
    ],
    base: Annotated[
        str | None, typer.Option("--base", help="Folder or id; left out: the default base.")
    ] = None,
    dtype: Annotated[
        MergedDtypeOption, typer.Option(help="What the result is stored in.")
    ] = MergedDtypeOption.BF16,
    dequantize: Annotated[
        bool,
        typer.Option(
            "--dequantize", help="Allow a base that is stored in 4 or 8 bits; the result has 16 or 32."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Merge an adapter into its base: one model without an adapter."""
    with command(as_json, extra="trainer") as output:
        from loraplex_cli.progress import spinner, stage_bars
        from loraplex_server.base.resolve import resolve_base
        from loraplex_trainer.packaging.merge import merge as merge_into

        with stage_bars() as progress:
            folder = resolve_base(base, progress)
        with spinner("merging"):
            report = merge_into(package, folder, output_folder, dtype=dtype.value, dequantize=dequantize)
        document = {"folder": str(output_folder), **asdict(report)}
        output.result(document, facts({key: document[key] for key in ("folder", "dtype", "fingerprint")}))


def register(
    package: PackageArgument,
    name: Annotated[str, typer.Argument(help="Name of the adapter, e.g. finance/faq.")],
    force: Annotated[bool, typer.Option("--force", help="Although its gate has not passed.")] = False,
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 300.0,
    as_json: JsonOption = False,
) -> None:
    """Hand a package that has passed its gate to a running server, as the alias 'candidate' of the adapter."""
    with command(as_json, extra="trainer") as output:
        from loraplex_cli.commands.adapters.text import adapter_document, version_document, version_facts
        from loraplex_cli.progress import stage_bars
        from loraplex_trainer.packaging.register import register as register_at

        with stage_bars() as progress:

            def report(sent: int, total: int) -> None:
                progress("sending", sent, total)

            made = register_at(package, server, name, force=force, timeout_s=timeout, on_progress=report)
        output.result(
            {"adapter": adapter_document(made.adapter), "version": version_document(made.version)},
            facts(version_facts(made.adapter, made.version)),
        )
