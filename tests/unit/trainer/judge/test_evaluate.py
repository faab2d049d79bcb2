from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from loraplex_adapters.errors import AdapterInvalidError
from loraplex_trainer.base_model import Precision
from loraplex_trainer.data.row import Message, Row
from loraplex_trainer.errors import SuiteUnavailableError, TrainingDataError
from loraplex_trainer.judge.evaluate import Evaluation, evaluate_package, evaluate_run, precision_of
from loraplex_trainer.judge.general import choose, perplexity
from loraplex_trainer.judge.graders import grade
from loraplex_trainer.judge.model_session import ModelSession
from loraplex_trainer.judge.questions import domain_questions, questions_of_rows
from loraplex_trainer.judge.suite import load_suite
from loraplex_trainer.recipe.document import Recipe, read_recipe
from loraplex_trainer.train.run_folder import RunFolder
from loraplex_trainer.train.tokens import prompt_token_ids

from ..conftest import SYSTEM
from .conftest import question, write_colour_recipe, write_lines

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def session(run: RunFolder, tiny_base: Path) -> ModelSession:
    return ModelSession(tiny_base, "fp32", run.best, CPU)


def prompts(session: ModelSession) -> list[list[int]]:
    asked = ("What is red?", "What is green, please?", "?")
    return [
        prompt_token_ids(
            session.tokenizer, [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
        )
        for text in asked
    ]


@pytest.fixture(scope="module")
def evaluation(run: RunFolder, recipe_file: Path, tiny_base: Path, tmp_path_factory: Any) -> Evaluation:
    other = write_colour_recipe(tmp_path_factory.mktemp("other"), tiny_base, name="other")
    write_lines(
        other.parent / "eval.jsonl",
        [
            question("red", expected="mauve"),
            question("blue", expected="Blue"),
            question("grey", expected="x"),
        ],
    )
    looks: list[tuple[str, int, int]] = []
    found = evaluate_package(
        run.best,
        read_recipe(recipe_file),
        recipe_file.parent,
        tiny_base,
        precision="fp32",
        others=[other],
        progress=lambda *look: looks.append(look),
    )
    asked = [(done, total) for stage, done, total in looks if stage == "asking"]
    assert asked[0] == (0, 8 + 8 + 3)  # own questions to both, the others' to the adapter
    assert asked[-1] == (19, 19)
    return found


@pytest.mark.parametrize("with_adapter", [False, True])
def test_an_answer_does_not_depend_on_its_batch(session: ModelSession, with_adapter: bool) -> None:
    together = session.complete(prompts(session), with_adapter=with_adapter, max_new_tokens=12)
    alone = [
        session.complete([prompt], with_adapter=with_adapter, max_new_tokens=12)[0]
        for prompt in prompts(session)
    ]

    assert together == alone


def test_the_adapter_is_off_for_the_base(session: ModelSession, tiny_base: Path) -> None:
    bare = ModelSession(tiny_base, "fp32", None, CPU)
    mine = session.complete(prompts(session), with_adapter=False, max_new_tokens=12)

    assert mine == bare.complete(prompts(session), with_adapter=False, max_new_tokens=12)
    assert mine != session.complete(prompts(session), with_adapter=True, max_new_tokens=12)
    with pytest.raises(ValueError, match="no adapter"):
        bare.complete(prompts(session), with_adapter=True, max_new_tokens=1)


def test_an_answer_ends_with_its_end_of_sequence_token(session: ModelSession) -> None:
    (whole,) = session.complete(prompts(session)[:1], with_adapter=True, max_new_tokens=12)
    (cut,) = session.complete(prompts(session)[:1], with_adapter=True, max_new_tokens=2)

    assert (whole.text, whole.ended) == ("Red.", True)
    assert (cut.text, cut.ended) == ("Re", False)
    assert session.tokenizer.eos_token_id not in whole.token_ids


def test_a_likelihood_is_the_sum_over_the_continuations_tokens(session: ModelSession) -> None:
    pairs = [(prompt, prompts(session)[0][-n:]) for n, prompt in enumerate(prompts(session), start=1)]
    found = session.log_likelihoods(pairs, with_adapter=True)

    for (context, continuation), total in zip(pairs, found, strict=True):
        rows = session.next_token_log_probabilities(context, continuation, with_adapter=True)
        expected = sum(float(row[token]) for row, token in zip(rows, continuation, strict=True))
        assert total == pytest.approx(expected, abs=1e-3)


def test_the_likeliest_choice_is_chosen_by_the_mean_of_its_tokens(session: ModelSession) -> None:
    suite = load_suite("mini-glue").first(4)
    chosen = choose(session, suite, with_adapter=True)

    for asked, pick in zip(suite.questions, chosen, strict=True):
        context = session.tokenizer(asked.context)["input_ids"]
        means = []
        for text in asked.choices:
            ids = session.tokenizer(f" {text}")["input_ids"]
            rows = session.next_token_log_probabilities(context, ids, with_adapter=True)
            means.append(sum(float(row[token]) for row, token in zip(rows, ids, strict=True)) / len(ids))
        assert pick == means.index(max(means))


def test_perplexity_of_prose_is_finite_and_the_adapters_own(session: ModelSession) -> None:
    base, adapter = (perplexity(session, with_adapter=on) for on in (False, True))

    assert 1 < base < 1e4
    assert base != adapter


def test_base_and_adapter_are_graded_on_the_same_questions(evaluation: Evaluation) -> None:
    assert (evaluation.domain_base.value, evaluation.domain_adapter.value) == (0.0, 1.0)
    assert evaluation.domain_base.n == evaluation.domain_adapter.n == evaluation.domain_change.n == 8
    assert (evaluation.domain_change.gained, evaluation.domain_change.lost) == (8, 0)
    assert evaluation.domain_change.p_value == pytest.approx(2**-7)
    assert [answer.adapter for answer in evaluation.answers][:2] == ["Red.", "Green."]
    assert (evaluation.eos_rate, evaluation.bad_rate) == (1.0, 0.0)


def test_general_ability_is_measured_on_the_suites_of_the_recipe(evaluation: Evaluation) -> None:
    (suite,) = evaluation.suites

    assert suite.name == "mini-glue"
    assert suite.base.n == suite.adapter.n == evaluation.general_base.n == evaluation.general_change.n == 6
    assert evaluation.general_adapter == suite.adapter


def test_right_answers_to_another_domains_questions_are_a_leak(evaluation: Evaluation) -> None:
    assert evaluation.leak_other_domains["other"].value == pytest.approx(1 / 3)
    assert evaluation.leak_other_domains["other"].n == 3


def test_a_run_is_judged_as_it_is_packaged_and_the_package_tells_of_it(
    own_run: RunFolder, recipe_file: Path, tiny_base: Path
) -> None:
    found = evaluate_run(own_run, recipe_file.parent, tiny_base)

    assert (
        json.loads(own_run.eval.read_text())["domain_adapter"]["value"] == found.domain_adapter.value == 1.0
    )
    manifest = json.loads((own_run.package / "manifest.json").read_text())
    assert manifest["metrics"]["domain_adapter"] == {
        "value": 1.0,
        "low": pytest.approx(0.676, abs=1e-3),
        "high": 1.0,
        "n": 8,
    }
    assert manifest["base"]["allowed_serving"] == ["fp32"]
    assert "answers" not in manifest["metrics"]
    assert "| domain | 0.0 % (0.0 to 32.4, n=8) | 100.0 %" in (own_run.package / "report.md").read_text()
    assert (own_run.package / "eval.json").read_bytes() == own_run.eval.read_bytes()


def test_the_precision_is_the_recipes_or_the_servers(recipe: Recipe) -> None:
    served = recipe.model_copy(update={"eval": recipe.eval.model_copy(update={"on": "served"})})

    assert precision_of(recipe) == "fp32"
    assert precision_of(served) in get_args(Precision)


def test_an_unsound_package_is_not_even_loaded(
    run: RunFolder, recipe_file: Path, tiny_base: Path, tmp_path: Path
) -> None:
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04.")

    with pytest.raises(AdapterInvalidError, match="pickle"):
        evaluate_package(tmp_path, read_recipe(recipe_file), recipe_file.parent, tiny_base)


def test_an_unknown_suite_is_refused(
    run: RunFolder, recipe: Recipe, recipe_file: Path, tiny_base: Path
) -> None:
    wrong = recipe.model_copy(update={"eval": recipe.eval.model_copy(update={"general": ("mini-bench",)})})

    with pytest.raises(SuiteUnavailableError, match="mini-bench"):
        evaluate_package(run.best, wrong, recipe_file.parent, tiny_base)


def test_without_a_file_the_validation_rows_are_asked(recipe: Recipe, tmp_path: Path) -> None:
    rows = [
        Row(_asked("What is red?"), "Red.", "a", "line 1"),
        Row(_asked("How many?"), "There are 3.", "a", "line 2", grader={"grader": "number", "expected": "3"}),
        Row(
            (*_asked("Hi"), Message(role="assistant", content="Hi"), *_asked("And?")), "Well.", "a", "line 3"
        ),
        Row(_asked("Hello"), "Hello.", "g", "line 1", stage="general"),
    ]
    closeness, number = questions_of_rows(rows, "Be brief.")

    assert (closeness["grader"], closeness["expected"], closeness["system"]) == (
        "rouge_l",
        "Red.",
        "Be brief.",
    )
    assert grade(number, "3, I think.")


def test_a_recipe_without_any_question_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    nothing = recipe.model_copy(update={"eval": recipe.eval.model_copy(update={"domain": None})})

    with pytest.raises(TrainingDataError, match=r"eval\.domain"):
        domain_questions(nothing, tmp_path)


def test_an_unknown_grader_is_refused_by_name(recipe: Recipe, tmp_path: Path) -> None:
    write_lines(tmp_path / "eval.jsonl", [question("red", grader="vibes")])

    with pytest.raises(TrainingDataError, match="vibes"):
        domain_questions(recipe, tmp_path)


def _asked(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)
