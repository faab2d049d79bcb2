"""`loraplex train`: from a recipe to an adapter package."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from loraplex_cli.exit_codes import EXIT_CODES_HELP
from loraplex_cli.options import JsonOption
from loraplex_cli.output import command, facts

app = typer.Typer(name="train", help="Train and measure adapters.", no_args_is_help=True)


class PrecisionOption(StrEnum):
    """Precisions of the base that an adapter can be measured on."""

    FP32 = "fp32"
    BF16 = "bf16"
    INT8 = "int8"
    NF4 = "nf4"


@app.command(epilog=EXIT_CODES_HELP)
def run(
    recipe: Annotated[Path, typer.Argument(help="recipe.yaml")],
    output_folder: Annotated[
        Path | None,
        typer.Option("--output", help="Folder of the package; left out: 'package' beside the recipe."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train the adapter that a recipe describes."""
    with command(as_json, extra="trainer") as output:
        from loraplex_cli.progress import stage_bars
        from loraplex_server.base.resolve import resolve_base
        from loraplex_trainer.recipe.document import read_recipe
        from loraplex_trainer.train.run import TrainProgress, train_recipe

        with stage_bars() as progress:

            def report_step(look: TrainProgress) -> None:
                progress("training", look.step, look.num_steps)

            base = resolve_base(read_recipe(recipe).base, progress)
            progress("training", 0, 1)  # importing the libraries and loading the base take a while too
            report = train_recipe(recipe, output_folder or recipe.parent / "package", report_step, base)
        document = {**asdict(report), "package": str(report.package)}
        output.result(document, facts(document))


@app.command("eval", epilog=EXIT_CODES_HELP)
def evaluate(
    recipe: Annotated[Path, typer.Argument(help="recipe.yaml whose held-out questions are asked")],
    package: Annotated[
        Path | None, typer.Option("--package", help="PEFT folder; left out: 'package' beside the recipe.")
    ] = None,
    other: Annotated[
        list[Path] | None, typer.Option("--other", help="Another domain's recipe; may be repeated.")
    ] = None,
    precision: Annotated[
        PrecisionOption, typer.Option(help="How the base is rounded.")
    ] = PrecisionOption.INT8,
    as_json: JsonOption = False,
) -> None:
    """Ask held-out questions of the base, and of the base with the adapter; print the share of right answers."""
    with command(as_json, extra="trainer") as output:
        from loraplex_cli.progress import stage_bars
        from loraplex_server.base.resolve import resolve_base
        from loraplex_trainer.judge.evaluate import evaluate_recipe
        from loraplex_trainer.recipe.document import read_recipe

        with stage_bars() as progress:
            report = evaluate_recipe(
                recipe,
                package or recipe.parent / "package",
                other or [],
                precision.value,
                resolve_base(read_recipe(recipe).base, progress),
                partial(progress, "asking"),
            )
        document = asdict(report)
        others = {f"on {name}": f"{share:.3f}" for name, share in report.on_other_domains.items()}
        output.result(
            document,
            facts(
                {
                    "recipe": report.name,
                    "precision": report.precision,
                    "questions": report.questions,
                    "adapter": f"{report.adapter:.3f}",
                    "base": f"{report.base:.3f}",
                    **others,
                }
            ),
        )
