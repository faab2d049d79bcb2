"""`loraplex train plan`: what a training would do and need, before it is begun."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraplex_cli.commands.train.plan_text import plan_text
from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.failures import CommandError
from loraplex_cli.options import JsonOption
from loraplex_cli.output import command

if TYPE_CHECKING:
    from loraplex_trainer.plan.shape import ModelShape
    from loraplex_trainer.recipe.document import Recipe


def plan(
    recipe: Annotated[
        Path | None, typer.Argument(help="recipe.yaml; may be left out with --model, for the defaults")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A base's folder, or a size: 1.3b, 7b, 13b, 30b, 65b, 70b. Left out: the recipe's base."
        ),
    ] = None,
    gpu: Annotated[
        float | None, typer.Option(min=0.1, help="Plan for a card of so many GB instead of this machine.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Rows of training data, for a rank that is auto.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run two steps here, and correct the plan by what they take.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Choose method, batch and precision by the memory there is, and say why; end with 6 where nothing fits."""
    with command(as_json, extra="trainer") as output:
        from loraplex_cli.progress import stage_bars
        from loraplex_trainer.plan.hardware import described_gpu, probe
        from loraplex_trainer.plan.measure import measured_plan
        from loraplex_trainer.plan.planner import make_plan
        from loraplex_trainer.plan.size_report import size_report
        from loraplex_trainer.plan.training_plan import DataSize

        _check_usage(recipe, model, gpu, measure)
        content = _recipe(recipe)
        data = DataSize(rows) if rows is not None else None
        with stage_bars() as progress:
            shape, folder = _base(content, model, progress)
            hardware = described_gpu(gpu) if gpu is not None else probe(content.resources)
            if measure and folder is None:
                raise CommandError(
                    "--measure needs a base's folder, not a size", ExitCode.BAD_INPUT, "BAD_USAGE"
                )
            made = (
                measured_plan(content, shape, hardware, folder, data, progress)
                if measure and folder is not None
                else make_plan(content, shape, hardware, data)
            )
        sizes = size_report(shape, made)
        document = asdict(made) | {
            "model": shape.name,
            "hardware": asdict(hardware),
            "memory": asdict(made.memory) | {"total": made.memory.total},
            "size": asdict(sizes),
        }
        output.result(document, plan_text(shape, hardware, made, sizes))


def _check_usage(recipe: Path | None, model: str | None, gpu: float | None, measure: bool) -> None:
    if recipe is None and model is None:
        raise CommandError("give a recipe, or --model", ExitCode.BAD_INPUT, "BAD_USAGE")
    if gpu is not None and measure:
        raise CommandError("--measure runs on this machine; leave out --gpu", ExitCode.BAD_INPUT, "BAD_USAGE")


def _recipe(path: Path | None) -> Recipe:
    """The file's, or one of defaults alone."""
    from loraplex_trainer.recipe.document import parse_recipe, read_recipe

    if path is not None:
        return read_recipe(path)
    return parse_recipe(
        {"name": "plan", "system": None, "data": {"sources": [{"path": "train.jsonl"}]}}, "defaults"
    )


def _base(recipe: Recipe, model: str | None, progress: Any) -> tuple[ModelShape, Path | None]:
    """Its shape, and its folder if it is here."""
    from loraplex_server.base.resolve import resolve_base
    from loraplex_trainer.plan.shape import PRESETS, model_shape

    if model is not None and model.lower() in PRESETS:
        return model_shape(model), None
    folder = resolve_base(model or recipe.base.model, progress)
    return model_shape(folder), folder
