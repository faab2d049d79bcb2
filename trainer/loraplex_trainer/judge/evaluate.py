"""Asks held-out questions greedily and grades the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loraplex_adapters.package import read_package
from loraplex_server.base.resolve import resolve_base
from loraplex_trainer.base_model import Precision, default_device, load_for_evaluation, load_tokenizer
from loraplex_trainer.judge.graders import EvalRow, grade, share_right
from loraplex_trainer.libraries import prepare_libraries
from loraplex_trainer.recipe.document import read_recipe
from loraplex_trainer.train.tokens import prompt_token_ids, question_messages, read_eval_rows

MAX_NEW_TOKENS = 48


@dataclass(frozen=True, slots=True)
class GradedAnswer:
    """What the model said to one question."""

    row: EvalRow
    completion: str
    is_right: bool


@dataclass(frozen=True, slots=True)
class EvalReport:
    """Accuracies in [0, 1] on held-out questions, all asked of the same base."""

    name: str
    precision: Precision
    questions: int
    adapter: float
    base: float
    on_other_domains: dict[str, float]  # the adapter's, by the other recipe's name


def evaluate_recipe(
    recipe_path: Path,
    package: Path,
    other_recipes: Sequence[Path] = (),
    precision: Precision = "bf16",
    base_folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EvalReport:
    """Ask base and adapter the recipe's own questions, and the adapter those of `other_recipes`.

    progress  called with (questions answered, questions in all), first with 0.

    Raises RecipeError, TrainingDataError, BaseModelError, AdapterInvalidError.
    """
    recipe = read_recipe(recipe_path)
    read_package(package)  # PEFT would load what the server refuses
    sets = {read_recipe(path).name: _questions(path) for path in other_recipes}
    sets[recipe.name] = _questions(recipe_path)
    base = base_folder or resolve_base(recipe.base)
    own = {recipe.name: sets[recipe.name]}
    advance = _counter(progress, sum(map(len, sets.values())) + len(own[recipe.name]))
    answers = evaluate(base, sets, package, precision, on_answered=advance)
    with_adapter = {name: accuracy(graded) for name, graded in answers.items()}
    bare = evaluate(base, own, None, precision, on_answered=advance)
    return EvalReport(
        name=recipe.name,
        precision=precision,
        questions=len(sets[recipe.name]),
        adapter=with_adapter.pop(recipe.name),
        base=accuracy(bare[recipe.name]),
        on_other_domains=with_adapter,
    )


def _questions(recipe_path: Path) -> list[EvalRow]:
    return read_eval_rows(recipe_path.parent / read_recipe(recipe_path).data.eval)


def _counter(progress: Callable[[int, int], None] | None, total: int) -> Callable[[int], None]:
    """Adds up numbers of answers for `progress`."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    advance(0)
    return advance


def evaluate(
    base_folder: Path,
    question_sets: Mapping[str, list[EvalRow]],
    package: Path | None = None,
    precision: Precision = "bf16",
    batch_size: int = 64,
    on_answered: Callable[[int], None] | None = None,
) -> dict[str, list[GradedAnswer]]:
    """Graded answers to each set, from the base alone or with the adapter in `package`.

    on_answered  called after each batch with its number of questions.
    """
    prepare_libraries()
    tokenizer = load_tokenizer(base_folder)
    model = load_for_evaluation(base_folder, precision, default_device())
    if package is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(package)).eval()
    return {
        name: answer_questions(model, tokenizer, rows, batch_size, on_answered)
        for name, rows in question_sets.items()
    }


def accuracy(answers: list[GradedAnswer]) -> float:
    """Share of right answers, in [0, 1]."""
    return share_right(answer.is_right for answer in answers)


def answer_questions(
    model: Any,
    tokenizer: Any,
    rows: list[EvalRow],
    batch_size: int,
    on_answered: Callable[[int], None] | None = None,
) -> list[GradedAnswer]:
    """Greedy answers of up to MAX_NEW_TOKENS tokens, in the order of `rows`."""
    graded = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        for row, completion in zip(batch, _complete(model, tokenizer, batch), strict=True):
            graded.append(GradedAnswer(row, completion, grade(row, completion)))
        if on_answered is not None:
            on_answered(len(batch))
    return graded


def _complete(model: Any, tokenizer: Any, rows: list[EvalRow]) -> list[str]:
    prompts = [prompt_token_ids(tokenizer, question_messages(row)) for row in rows]
    longest = max(map(len, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    # Padding stands on the left, so that every row's next token is in the last column.
    input_ids = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=model.device)
    with torch.inference_mode():
        output = model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=tokenizer.eos_token_id,
        )
    return [text.strip() for text in tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)]
