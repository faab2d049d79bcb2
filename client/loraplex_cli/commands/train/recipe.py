"""`loraplex train recipe`: write, check and import recipes."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from loraplex_cli.exit_codes import EXIT_CODES_HELP, ExitCode
from loraplex_cli.failures import CommandError
from loraplex_cli.options import JsonOption
from loraplex_cli.output import command, facts

app = typer.Typer(name="recipe", help="Write, check and import recipes.", no_args_is_help=True)


class Origin(StrEnum):
    """As loraplex_trainer.recipe.foreign_keys.Origin."""

    LLAMAFACTORY = "llamafactory"
    AXOLOTL = "axolotl"


@app.command(epilog=EXIT_CODES_HELP)
def new(
    file: Annotated[Path, typer.Argument(help="where to write it; must not exist")],
    name: Annotated[str, typer.Option(help="Name of the adapter.")],
    data: Annotated[str, typer.Option(help="File or pattern, relative to the recipe.")],
    system: Annotated[
        str | None, typer.Option(help="What the adapter is always told; left out: no system turn.")
    ] = None,
    tenant: Annotated[str, typer.Option(help="Whose adapter it is.")] = "default",
    as_json: JsonOption = False,
) -> None:
    """Write a recipe to fill in."""
    with command(as_json, extra="trainer") as output:
        from loraplex_trainer.recipe.schema import new_recipe

        text = new_recipe(name, data, system, tenant)
        _write(file, text)
        output.result(
            {"file": str(file), "name": name},
            f"{file} is written; edit it, then `loraplex train plan {file}`",
        )


@app.command(epilog=EXIT_CODES_HELP)
def check(
    recipe: Annotated[Path, typer.Argument(help="recipe.yaml")],
    as_json: JsonOption = False,
) -> None:
    """Check a recipe and show what it says with all defaults."""
    with command(as_json, extra="trainer") as output:
        from loraplex_trainer.recipe.document import dump_recipe, read_recipe

        content = read_recipe(recipe)
        document = {"sha256": content.sha256(), "recipe": content.model_dump(mode="json")}
        output.result(document, dump_recipe(content).rstrip() + f"\n# sha256 {content.sha256()}")


@app.command(epilog=EXIT_CODES_HELP)
def schema(as_json: JsonOption = False) -> None:
    """Print the JSON Schema of recipes; editors complete and check by it."""
    with command(as_json, extra="trainer") as output:
        from loraplex_trainer.recipe.schema import recipe_schema

        document = recipe_schema()
        output.result(document, json.dumps(document, indent=2, ensure_ascii=False))


@app.command("import", epilog=EXIT_CODES_HELP)
def import_(
    origin: Annotated[Origin, typer.Argument(help="whose file it is")],
    file: Annotated[Path, typer.Argument(help="its YAML file")],
    target: Annotated[
        Path | None, typer.Option("--output", help="Where to write the recipe; left out: standard output.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn a LLaMA-Factory or Axolotl file into a recipe; lists what is not carried over."""
    with command(as_json, extra="trainer") as output:
        from loraplex_trainer.recipe.convert import import_recipe
        from loraplex_trainer.recipe.document import dump_recipe

        converted = import_recipe(file, origin.value)
        text = dump_recipe(converted.recipe)
        if target is not None:
            _write(target, text)
        for entry in converted.not_carried_over:
            output.note(f"not carried over: {entry}")
        document = {
            "recipe": converted.recipe.model_dump(mode="json"),
            "not_carried_over": list(converted.not_carried_over),
        }
        written = facts({"written": target, "not carried over": len(converted.not_carried_over)})
        output.result(document, text.rstrip() if target is None else written)


def _write(file: Path, text: str) -> None:
    """Never over a file that is there."""
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise CommandError(
            f"{file.name} exists already; remove it or name another file", ExitCode.BAD_INPUT, "FILE_ERROR"
        ) from None
