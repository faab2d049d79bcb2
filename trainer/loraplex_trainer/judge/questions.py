"""The held-out questions of a domain: a file of the recipe, or the validation rows of its built data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from loraplex_trainer.errors import TrainingDataError
from loraplex_trainer.judge.graders import EvalRow

if TYPE_CHECKING:
    from loraplex_trainer.data.row import Row
    from loraplex_trainer.recipe.document import Recipe
    from loraplex_trainer.train.run_folder import RunFolder

_REFERENCE_GRADER = "rouge_l"  # for a row that does not say how to judge: closeness to its own answer


def domain_questions(recipe: Recipe, recipe_folder: Path, built: Path | None = None) -> list[EvalRow]:
    """What the adapter of this recipe is asked at the end.

    built  folder of the built data, used where the recipe names no file; None: there is none.

    Raises TrainingDataError where there are no questions at all.
    """
    if recipe.eval.domain is not None:
        from loraplex_trainer.train.tokens import read_eval_rows

        rows = read_eval_rows(recipe_folder / recipe.eval.domain)
    elif built is not None and built.is_dir():
        from loraplex_trainer.data.built import load_built

        rows = questions_of_rows(load_built(built).val, recipe.system)
    else:
        rows = []
    if not rows:
        raise TrainingDataError(
            "there are no held-out questions: name a file of them as eval.domain, or let data.val keep some rows back"
        )
    return rows


def built_data(run: RunFolder, recipe: Recipe) -> Path | None:
    """Folder of the data that the run's last stage was trained on; None where the run keeps none."""
    own = [stage.name for stage in recipe.stages if stage.sources is not None]
    last_has_own = bool(recipe.stages) and recipe.stages[-1].sources is not None
    folder = run.stage_data(own[-1]) if last_has_own else run.data
    return folder if folder.is_dir() else None


def questions_of_rows(rows: Sequence[Row], system: str | None) -> list[EvalRow]:
    """Held-out questions made of rows with one turn; a conversation of several is no question by itself."""
    return [_question(row, system) for row in rows if len(row.prompt) == 1 and row.stage != "general"]


def _question(row: Row, system: str | None) -> EvalRow:
    judged: dict[str, Any] = row.grader or {"grader": _REFERENCE_GRADER, "expected": row.completion}
    asked = {"id": row.id, "system": system, "question": row.question, "answer": row.completion}
    return cast(EvalRow, {**asked, **judged})
