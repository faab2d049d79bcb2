"""`loraplex train data`: from documents and conversations to clean rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraplex_cli.exit_codes import EXIT_CODES_HELP, ExitCode
from loraplex_cli.options import JsonOption
from loraplex_cli.output import command, facts

if TYPE_CHECKING:
    from loraplex_cli.progress import StageProgress
    from loraplex_trainer.data.report import DataReport
    from loraplex_trainer.recipe.document import Recipe
    from loraplex_trainer.recipe.sections import StageSection

app = typer.Typer(name="data", help="Read, clean and split training data.", no_args_is_help=True)

RecipeArgument = Annotated[Path, typer.Argument(help="recipe.yaml whose sources are read")]
StageOption = Annotated[
    str | None, typer.Option("--stage", help="Name of a stage; left out: the recipe's `data`.")
]
LengthsOption = Annotated[
    bool,
    typer.Option(
        "--lengths/--no-lengths", help="Count tokens with the base's tokenizer, and drop overlong rows."
    ),
]


@app.command(epilog=EXIT_CODES_HELP)
def inspect(
    recipe: RecipeArgument,
    stage: StageOption = None,
    lengths: LengthsOption = True,
    as_json: JsonOption = False,
) -> None:
    """Report what a build would do, without writing rows; 2 if the rows could not be trained on."""
    with command(as_json, extra="trainer") as output:
        from loraplex_cli.progress import stage_bars
        from loraplex_trainer.data.build import inspect_data
        from loraplex_trainer.data.markdown import as_markdown
        from loraplex_trainer.recipe.document import read_recipe

        parsed = read_recipe(recipe)
        with stage_bars(are_shown=not as_json) as progress:
            tokenizer = _tokenizer(parsed, progress) if lengths else None
            report = inspect_data(parsed, recipe.parent, tokenizer, progress, stage=_stage(parsed, stage))
        output.result(report.model_dump(mode="json"), as_markdown(report))
        if report.problems:
            raise typer.Exit(ExitCode.BAD_INPUT)


@app.command(epilog=EXIT_CODES_HELP)
def build(
    recipe: RecipeArgument,
    folder: Annotated[
        Path | None,
        typer.Option("--output", help="Folder to write; left out: 'data-build' beside the recipe."),
    ] = None,
    stage: StageOption = None,
    lengths: LengthsOption = True,
    as_json: JsonOption = False,
) -> None:
    """Write rows.jsonl, report.json and report.md; an earlier build in the folder is replaced."""
    with command(as_json, extra="trainer") as output:
        from loraplex_cli.progress import stage_bars
        from loraplex_trainer.data.build import build_data, build_stage
        from loraplex_trainer.recipe.document import read_recipe

        parsed = read_recipe(recipe)
        target, chosen = folder or recipe.parent / "data-build", _stage(parsed, stage)
        with stage_bars(are_shown=not as_json) as progress:
            tokenizer = _tokenizer(parsed, progress) if lengths else None
            if chosen is None:
                built = build_data(parsed, recipe.parent, target, tokenizer, progress)
            else:
                built = build_stage(parsed, chosen, recipe.parent, target, tokenizer, progress)
        for warning in built.warnings:
            output.note(f"warning: {warning}")
        summary = _summary(built.report)
        output.result({"folder": str(target), **summary, "warnings": list(built.warnings)}, facts(summary))


def _summary(report: DataReport) -> dict[str, Any]:
    return {
        "train": report.split.train,
        "augmented": report.augment.rows,
        "general": report.general.rows,
        "val": report.split.val,
        "rejected": report.rejected,
        "duplicates": report.duplicates.exact + report.duplicates.near,
        "overlong": report.lengths.overlong,
        "sha256": report.sha256,
    }


def _stage(recipe: Recipe, name: str | None) -> StageSection | None:
    from loraplex_trainer.errors import RecipeError

    if name is None:
        return None
    found = next((stage for stage in recipe.stages if stage.name == name), None)
    if found is None:
        known = ", ".join(stage.name for stage in recipe.stages) or "none"
        raise RecipeError(f"the recipe has no stage {name!r}; it has: {known}")
    return found


def _tokenizer(recipe: Recipe, progress: StageProgress) -> Any:
    from loraplex_server.base.resolve import resolve_base
    from loraplex_trainer.base_model import load_tokenizer

    return load_tokenizer(resolve_base(recipe.base.model, progress))
