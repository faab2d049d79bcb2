"""`loraplex train preflight` and `samples`: looks at what goes in, and at what comes out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraplex_cli.commands.train.run import BaseOption, base_folder
from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.failures import CommandError
from loraplex_cli.options import JsonOption
from loraplex_cli.output import command, facts

if TYPE_CHECKING:
    from loraplex_trainer.train.preflight import Preflight


def preflight(
    recipe: Annotated[Path, typer.Argument(help="recipe.yaml")],
    base: BaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a training would see: template, the text that has a loss, lengths; 2 if rows cannot be trained on."""
    with command(as_json, extra="trainer") as output:
        import tempfile

        from loraplex_cli.progress import stage_bars
        from loraplex_trainer.libraries import prepare_libraries
        from loraplex_trainer.recipe.document import read_recipe

        content = read_recipe(recipe)
        with stage_bars() as progress, tempfile.TemporaryDirectory(prefix="loraplex-preflight-") as scratch:
            folder = base_folder(content, base, progress)
            prepare_libraries()
            from loraplex_trainer.base_model import load_tokenizer
            from loraplex_trainer.train.inputs import stages_of
            from loraplex_trainer.train.preflight import preflight as look
            from loraplex_trainer.train.run_folder import RunFolder

            tokenizer = load_tokenizer(folder)
            run = RunFolder(Path(scratch))
            stages, _, warnings = stages_of(content, recipe.parent, run, tokenizer, None, progress)
            rows = [row for stage in stages for row in (*stage.train, *stage.val)]
            report, _ = look(rows, tokenizer, content.system, content.data.max_length, folder)
        for warning in (*warnings, *report.warnings):
            output.note(f"warning: {warning}")
        document = {**asdict(report), "warnings": [*warnings, *report.warnings]}
        output.result(document, _text(report))


def samples(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="Folder of a run")],
    epoch: Annotated[
        float | None, typer.Option(help="After which epoch of the last stage; left out: the last.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the answers to the typical questions, the base's beside the adapter's."""
    with command(as_json, extra="trainer") as output:
        from loraplex_trainer.train.run_folder import RunFolder, read_lines

        run = RunFolder(run_folder)
        lines = read_lines(run.samples)
        if not lines:
            raise CommandError(
                f"'{run_folder.name}' holds no samples: no epoch has ended, or samples.n is 0",
                ExitCode.BAD_INPUT,
                "SAMPLES_MISSING",
            )
        lines = [line for line in lines if line["stage"] == lines[-1]["stage"]]
        asked = lines[-1]["epoch"] if epoch is None else epoch
        shown = [line for line in lines if line["epoch"] == asked]
        if not shown:
            epochs = ", ".join(f"{e:g}" for e in sorted({line["epoch"] for line in lines}))
            raise CommandError(
                f"there are samples of the epochs {epochs}", ExitCode.BAD_INPUT, "SAMPLES_MISSING"
            )
        output.result({"epoch": asked, "samples": shown}, "\n\n".join(_answer(line) for line in shown))


def _answer(line: dict[str, Any]) -> str:
    return facts(
        {
            "question": line["question"],
            "base": line["base"],
            "adapter": line["adapter"],
            "reference": line["reference"],
            "problems": ", ".join(line["problems"]) or "-",
        }
    )


def _text(report: Preflight) -> str:
    lengths = report.lengths
    rows: dict[str, object] = {
        "rows": report.num_rows,
        "template": report.template_sha256 or "none",
        "EOS has a loss": f"{report.eos_supervised_share:.0%} of the rows",
        "tokens": f"{lengths.shortest} to {lengths.longest}, median {lengths.median}, at most {lengths.max_length}",
        "tokens with loss": f"{lengths.supervised_share:.0%}",
    }
    rows |= {f"row {number}": text for number, text in enumerate(report.supervised_texts, start=1)}
    return facts(rows)
