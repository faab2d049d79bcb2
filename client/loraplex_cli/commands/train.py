"""`loraplex train`: from a recipe to an adapter package."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from loraplex_cli.exit_codes import EXIT_CODES_HELP
from loraplex_cli.options import JsonOption
from loraplex_cli.output import command, facts

app = typer.Typer(name="train", help="Train adapters.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `run` a command of its own while it is the only one."""


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
    with command(as_json) as output:
        from loraplex_cli.progress import stage_bars
        from loraplex_trainer.run import TrainProgress, train_recipe

        with stage_bars() as progress:

            def report_step(look: TrainProgress) -> None:
                progress("training", look.step, look.num_steps)

            report = train_recipe(recipe, output_folder or recipe.parent / "package", report_step)
        document = {**asdict(report), "package": str(report.package)}
        output.result(document, facts(document))
