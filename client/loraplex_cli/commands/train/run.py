"""`loraplex train run`: from recipes to trained adapters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraplex_cli.commands.train.stopping import OrderlyStop, how_to_go_on
from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.failures import CommandError
from loraplex_cli.options import JsonOption
from loraplex_cli.output import Output, command

if TYPE_CHECKING:
    from loraplex_cli.progress import StageProgress
    from loraplex_trainer.recipe.document import Recipe
    from loraplex_trainer.train.report import TrainReport

BaseOption = Annotated[
    str | None, typer.Option("--base", help="Folder or id of the base; left out: the recipe's.")
]


def run(
    recipes: Annotated[
        list[Path], typer.Argument(metavar="RECIPE...", help="recipe.yaml; several with --together")
    ],
    output_folder: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="Run folder; left out: 'run' beside the recipe. With --together, the folder of run folders.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder, from its newest checkpoint.")
    ] = False,
    together: Annotated[
        bool, typer.Option("--together", help="Train all recipes in one pass over one base.")
    ] = False,
    patch: Annotated[
        Path | None,
        typer.Option("--patch", help="YAML laid over the recipe, e.g. a run's overfit.patch.yaml."),
    ] = None,
    base: BaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the adapter that a recipe describes; end with 7 where it pauses because its answers are bad."""
    with command(as_json, extra="trainer") as output:
        _check_usage(recipes, together, resume)
        from loraplex_cli.progress import stage_bars

        with stage_bars() as progress:
            if together:
                reports = _train_together(recipes, output_folder, patch, base, output, progress)
            else:
                reports = [_train_one(recipes[0], output_folder, patch, base, resume, output, progress)]
        documents = [report.document() for report in reports]
        text = "\n\n".join(_text(report) for report in reports)
        output.result({"runs": documents} if together else documents[0], text)
        if any(report.status == "paused" for report in reports):
            raise typer.Exit(ExitCode.PAUSED)
        if any(report.status == "cancelled" for report in reports):
            raise typer.Exit(ExitCode.INTERRUPTED)


def read_patched(recipe: Path, patch: Path | None) -> Recipe:
    """The recipe, with a patch laid over it. Raises RecipeError."""
    import yaml

    from loraplex_trainer.errors import RecipeError
    from loraplex_trainer.recipe.document import read_recipe
    from loraplex_trainer.train.overfit import apply_patch

    content = read_recipe(recipe)
    if patch is None:
        return content
    try:
        changes = yaml.safe_load(patch.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RecipeError(f"{patch.name} is not valid YAML") from error
    return apply_patch(content, changes, patch.name)


def base_folder(recipe: Recipe, base: str | None, progress: StageProgress) -> Path:
    """The base that is trained on, fetched where it is not here yet."""
    from loraplex_server.base.resolve import resolve_base

    return resolve_base(base or recipe.base.model, progress)


def _check_usage(recipes: list[Path], together: bool, resume: bool) -> None:
    if len(recipes) > 1 and not together:
        raise CommandError(
            "several recipes are trained with --together, or one by one", ExitCode.BAD_INPUT, "BAD_USAGE"
        )
    if together and resume:
        raise CommandError(
            "--together cannot be resumed; run it again with another --output",
            ExitCode.BAD_INPUT,
            "BAD_USAGE",
        )


def _train_one(
    path: Path,
    output_folder: Path | None,
    patch: Path | None,
    base: str | None,
    resume: bool,
    output: Output,
    progress: StageProgress,
) -> TrainReport:
    from loraplex_trainer.train.events import Advanced, TrainEvent
    from loraplex_trainer.train.session import train

    recipe = read_patched(path, patch)
    folder = base_folder(recipe, base, progress)
    progress("training", 0, 1)  # importing the libraries and loading the base take a while too
    run_folder = output_folder or path.parent / "run"
    stop = OrderlyStop(output.note)

    def watch(event: TrainEvent) -> None:
        stop.is_training |= isinstance(event, Advanced)
        _tell(event, "", output, progress)

    try:
        with stop.heeding_interrupts():
            report = train(
                recipe,
                path.parent,
                run_folder,
                folder,
                resume=resume,
                on_event=watch,
                should_stop=stop.is_asked,
            )
    except KeyboardInterrupt:
        output.note(how_to_go_on(run_folder))
        raise
    if report.status == "cancelled":
        output.note(how_to_go_on(run_folder))
    return report


def _train_together(
    paths: list[Path],
    output_folder: Path | None,
    patch: Path | None,
    base: str | None,
    output: Output,
    progress: StageProgress,
) -> list[TrainReport]:
    from loraplex_trainer.train.together import TogetherRun, check_together, train_together

    recipes = [read_patched(path, patch) for path in paths]
    check_together(recipes)
    folder = base_folder(recipes[0], base, progress)
    runs = [
        TogetherRun(
            recipe, path.parent, output_folder / recipe.name if output_folder else path.parent / "run"
        )
        for recipe, path in zip(recipes, paths, strict=True)
    ]
    return train_together(
        runs, folder, on_event=lambda name, event: _tell(event, f"{name} ", output, progress)
    )


def _tell(event: Any, prefix: str, output: Output, progress: StageProgress) -> None:
    """Steps move the bar; what people should see is a line on standard error."""
    from loraplex_trainer.train import events

    match event:
        case events.Advanced():
            progress(f"{prefix}training", event.step, event.num_steps)
        case events.StageStarted():
            output.note(
                f"{prefix}stage {event.stage}: {event.num_rows} rows, at most {event.max_epochs} epochs"
            )
        case events.Evaluated():
            output.note(
                f"{prefix}epoch {event.epoch:g}: validation perplexity {event.perplexity:.4g}, gap {event.gap:+.4g}"
            )
        case events.Sampled():
            output.note(
                f"{prefix}epoch {event.epoch:g}: {event.num_bad} of {event.num_answers} answers are bad"
            )
        case events.OverfitAlarm():
            output.note(
                f"{prefix}epoch {event.epoch:g}: overfitting, validation loss is {event.ratio:.2f} times that of "
                "training; overfit.patch.yaml in the run folder changes the recipe (--patch)"
            )
        case events.Paused():
            output.note(f"{prefix}paused: {event.why}")
        case events.Log():
            output.note(f"{prefix}{event.message}")


def _text(report: TrainReport) -> str:
    from loraplex_cli.output import facts, mebibytes

    shown: dict[str, object] = {
        "run": str(report.run_folder),
        "status": report.status,
        "method": f"{report.method} on {report.device}",
        "rows": f"{report.num_rows}, {report.num_val} of validation",
        "steps": report.num_steps,
        "perplexity": f"{_number(report.first_perplexity)} -> {_number(report.best_perplexity)}",
        "best epoch": _number(report.best_epoch),
        "typical questions right": _number(report.sample_accuracy),
        "seconds": f"{report.seconds:.1f}",
        "peak memory": f"{mebibytes(report.peak_memory_bytes)}, planned {mebibytes(report.planned_memory_bytes)}",
        "adapter": mebibytes(report.adapter_bytes),
    }
    if report.cost.total is not None:
        shown["cost"] = f"{report.cost.total:g}"
    return facts(shown)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
