"""`loraplex train eval`, `compare` and `gate`: what an adapter can do, and whether it may be served."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraplex_cli.commands.train.run import BaseOption, base_folder
from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.failures import CommandError
from loraplex_cli.options import JsonOption
from loraplex_cli.output import columns, command, facts, mebibytes

if TYPE_CHECKING:
    from loraplex_trainer.judge.statistics import Verdict
    from loraplex_trainer.recipe.document import Recipe
    from loraplex_trainer.train.events import TrainEvent


class PrecisionOption(StrEnum):
    """Precisions of the base that an adapter can be measured on."""

    FP32 = "fp32"
    BF16 = "bf16"
    INT8 = "int8"
    NF4 = "nf4"


class VariantOption(StrEnum):
    """What can be compared: lora with qlora, raw with clean."""

    LORA = "lora"
    QLORA = "qlora"
    RAW = "raw"
    CLEAN = "clean"


RecipeArgument = Annotated[Path, typer.Argument(help="recipe.yaml; it names the held-out questions.")]
PackageOption = Annotated[
    Path | None, typer.Option("--package", help="PEFT folder; left out: 'package' beside the recipe.")
]
RunOption = Annotated[
    Path | None, typer.Option("--run", help="Run folder of `train run`; its package is taken.")
]
OtherOption = Annotated[
    list[Path] | None, typer.Option("--other", help="Another domain's recipe; may be repeated.")
]
PrecisionOptional = Annotated[
    PrecisionOption | None, typer.Option("--precision", help="Of the base; left out: what the recipe says.")
]


def evaluate(
    recipe: RecipeArgument,
    package: PackageOption = None,
    run: RunOption = None,
    other: OtherOption = None,
    precision: PrecisionOptional = None,
    base: BaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask base and adapter the same questions: the domain's own, those of other domains, general ones."""
    with command(as_json, extra="trainer") as output:
        from loraplex_cli.progress import stage_bars
        from loraplex_trainer.judge.evaluate import evaluate_package, evaluate_run
        from loraplex_trainer.judge.questions import built_data
        from loraplex_trainer.recipe.document import read_recipe
        from loraplex_trainer.train.run_folder import RunFolder

        read = read_recipe(recipe)
        with stage_bars() as progress:
            model = base_folder(read, base, progress)
            options: dict[str, Any] = {
                "precision": _value(precision),
                "others": other or (),
                "progress": progress,
            }
            if run is not None:
                _check_same_adapter(read, run)
                evaluation = evaluate_run(RunFolder(run), recipe.parent, model, **options)
            else:
                folder = _package_folder(recipe, package, run)
                built = built_data(RunFolder(folder.parent), read)
                evaluation = evaluate_package(folder, read, recipe.parent, model, built=built, **options)
        document = evaluation.document()
        output.result(document, _evaluation_text(document))


def compare(
    first: Annotated[VariantOption, typer.Argument(help="lora or raw")],
    second: Annotated[VariantOption, typer.Argument(help="qlora or clean")],
    recipe: RecipeArgument,
    output_folder: Annotated[Path, typer.Option("--output", help="Folder for the two runs.")],
    other: OtherOption = None,
    precision: PrecisionOptional = None,
    base: BaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a recipe twice, as LoRA and QLoRA or on raw and on cleaned data, and set the results side by side.

    For `lora qlora` the exit code is 5 where QLoRA loses surely more than gate.max_quality_loss_vs_lora points, 8 where
    the questions are too few to tell.
    """
    with command(as_json, extra="trainer") as output:
        from loraplex_cli.progress import stage_bars
        from loraplex_trainer.judge.compare import compare as compare_variants
        from loraplex_trainer.recipe.document import read_recipe

        read = read_recipe(recipe)
        with stage_bars() as progress:
            comparison = compare_variants(
                first.value,
                second.value,
                read,
                recipe.parent,
                base_folder(read, base, progress),
                output_folder,
                precision=_value(precision),
                others=other or (),
                on_event=_step_reporter(progress),
                progress=progress,
            )
        document = comparison.document()
        output.result(document, _comparison_text(document))
        _exit_with(comparison.verdict or "pass")


def gate(
    recipe: RecipeArgument,
    package: PackageOption = None,
    run: RunOption = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option("--beside", help="Package whose answers must not change; may be repeated."),
    ] = None,
    precision: PrecisionOptional = None,
    base: BaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge a package in the server's own engine; write the verdict into it. 0 pass, 5 fail, 8 too few questions."""
    with command(as_json, extra="trainer") as output:
        from loraplex_cli.progress import stage_bars
        from loraplex_trainer.judge.evaluate import precision_of
        from loraplex_trainer.judge.gate import run_gate
        from loraplex_trainer.recipe.document import read_recipe
        from loraplex_trainer.train.run_folder import RunFolder, write_json

        read = read_recipe(recipe)
        folder = _package_folder(recipe, package, run)
        if run is not None:
            _check_same_adapter(read, run)
        with stage_bars() as progress:
            report = run_gate(
                folder,
                read,
                recipe.parent,
                base_folder(read, base, progress),
                others=beside or (),
                precision=_value(precision) or precision_of(read),
                progress=progress,
            )
        if run is not None:
            write_json(RunFolder(run).gate, report.document())
        table = columns(
            ("check", "verdict", "found"),
            [(check.name, check.verdict, check.message) for check in report.checks],
        )
        output.result(report.document(), f"{report.verdict}\n{table}")
        _exit_with(report.verdict)


def _check_same_adapter(recipe: Recipe, run: Path) -> None:
    """Raises CommandError where the run is another recipe's: it would be asked the questions beside this one."""
    from loraplex_trainer.recipe.document import read_recipe
    from loraplex_trainer.train.run_folder import RunFolder

    trained = read_recipe(RunFolder(run).recipe)
    if (trained.tenant, trained.name) != (recipe.tenant, recipe.name):
        raise CommandError(
            f"the run in {run} trained {trained.tenant}/{trained.name}, and the recipe is of "
            f"{recipe.tenant}/{recipe.name}; give the recipe that the run was made by",
            ExitCode.BAD_INPUT,
            "RUN_FOLDER_INVALID",
        )


def _package_folder(recipe: Path, package: Path | None, run: Path | None) -> Path:
    """Raises CommandError where nothing is there: that is no verdict on a package."""
    from loraplex_trainer.train.run_folder import RunFolder

    folder = RunFolder(run).package if run is not None else package or recipe.parent / "package"
    if not folder.is_dir():
        raise CommandError(
            f"there is no package at {folder}; name one with --package or --run, or write it with "
            "`loraplex train package RUN_FOLDER`",
            ExitCode.BAD_INPUT,
            "ADAPTER_INVALID",
        )
    return folder


def _value(precision: PrecisionOption | None) -> Any:
    return None if precision is None else precision.value


def _exit_with(verdict: Verdict) -> None:
    code = {"pass": ExitCode.OK, "fail": ExitCode.WRONG_RESULT, "inconclusive": ExitCode.INCONCLUSIVE}[
        verdict
    ]
    if code is not ExitCode.OK:
        raise typer.Exit(code)


def _step_reporter(progress: Callable[[str, int, int], None]) -> Callable[[TrainEvent], None]:
    from loraplex_trainer.train.events import Advanced

    def report(event: TrainEvent) -> None:
        if isinstance(event, Advanced):
            progress("training", event.step, event.num_steps)

    return report


def _evaluation_text(document: dict[str, Any]) -> str:
    from loraplex_trainer.packaging.readable import change_text, share_text

    rows = [
        (title, share_text(found["base"]), share_text(found["adapter"]), change_text(found["change"]))
        for title, found in [
            *((title, _parts(document, title)) for title in ("domain", "general")),
            *((suite["name"], suite) for suite in document["suites"]),
        ]
    ]
    leaks = {f"right on {name}": share_text(leak) for name, leak in document["leak_other_domains"].items()}
    further = {
        "precision": document["precision"],
        "perplexity of prose": f"{document['perplexity_base']:.2f} → {document['perplexity_adapter']:.2f}",
        "ends by itself": f"{document['eos_rate']:.1%}",
        "bad answers": f"{document['bad_rate']:.1%}",
        **leaks,
    }
    return f"{columns(('', 'base', 'adapter', 'change'), rows)}\n\n{facts(further)}"


def _parts(document: dict[str, Any], title: str) -> dict[str, Any]:
    return {part: document[f"{title}_{part}"] for part in ("base", "adapter", "change")}


def _comparison_text(document: dict[str, Any]) -> str:
    from loraplex_trainer.packaging.readable import change_text, share_text

    rows = [
        (
            name,
            share_text(found["domain_adapter"]),
            share_text(found["general_adapter"]),
            found["num_rows"],
            mebibytes(found["peak_memory_bytes"]),
            f"{found['seconds']:.0f} s",
        )
        for name, found in document["variants"].items()
    ]
    table = columns(("variant", "domain", "general", "rows", "peak memory", "time"), rows)
    change = change_text(document["domain_change"])
    judged = f", {document['verdict']}" if document["verdict"] else ""
    return f"{table}\n\nsecond against first on the domain: {change}{judged}"
