"""Base and adapter on the same prompts: the domain's held-out questions, those of other domains, general ability."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraplex_trainer.base_model import Precision
from loraplex_trainer.judge.general import StageProgress, answer_suites, perplexity
from loraplex_trainer.judge.graders import EvalRow, score
from loraplex_trainer.judge.model_session import Completion, ModelSession
from loraplex_trainer.judge.questions import built_data, domain_questions
from loraplex_trainer.judge.statistics import Change, Share, paired_change, share
from loraplex_trainer.recipe.document import Recipe, read_recipe
from loraplex_trainer.train.answers import problems
from loraplex_trainer.train.tokens import prompt_token_ids, question_messages

if TYPE_CHECKING:
    from loraplex_trainer.train.run_folder import RunFolder

MAX_NEW_TOKENS = 48


@dataclass(frozen=True, slots=True)
class GradedAnswer:
    """One held-out question and what both said."""

    id: str
    question: str
    reference: str
    base: str
    adapter: str
    base_score: float  # in [0, 1]
    adapter_score: float
    has_ended: bool  # the adapter's, by itself
    problems: tuple[str, ...]  # of the adapter's answer, see loraplex_trainer.train.answers


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """One suite of general questions."""

    name: str
    base: Share
    adapter: Share
    change: Change


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything that was measured of one adapter on one precision of its base."""

    name: str
    precision: Precision
    confidence: float  # of all intervals
    domain_base: Share
    domain_adapter: Share
    domain_change: Change
    general_base: Share  # over the questions of all suites
    general_adapter: Share
    general_change: Change
    suites: tuple[SuiteResult, ...]
    perplexity_base: float  # of plain prose
    perplexity_adapter: float
    leak_other_domains: dict[str, Share]  # the adapter's right answers to questions of other recipes, by name
    eos_rate: float  # of the adapter's answers to its own questions, in [0, 1]
    bad_rate: float
    seconds: float
    answers: tuple[GradedAnswer, ...]

    def document(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def summary(self) -> dict[str, Any]:
        """Without the answers."""
        return {key: value for key, value in self.document().items() if key != "answers"}


def evaluate_run(
    run: RunFolder,
    recipe_folder: Path,
    base_folder: Path,
    *,
    precision: Precision | None = None,
    others: Sequence[Path] = (),
    progress: StageProgress | None = None,
) -> Evaluation:
    """Evaluate the run's best adapter, write `eval.json` into the run folder, and package the run with it.

    What is judged is the package: the weights as they are stored. An earlier gate's verdict goes with the old package.

    precision  None: the recipe's `eval.on`
    others     recipes of other domains, whose questions the adapter should not be able to answer

    Raises RunIncompleteError, TrainingDataError, SuiteUnavailableError, AdapterInvalidError.
    """
    from loraplex_trainer.packaging.package import package_run
    from loraplex_trainer.train.run_folder import write_json

    recipe = read_recipe(run.recipe)
    evaluation = evaluate_package(
        package_run(run, base_folder),
        recipe,
        recipe_folder,
        base_folder,
        precision=precision,
        others=others,
        built=built_data(run, recipe),
        progress=progress,
    )
    write_json(run.eval, evaluation.document())
    package_run(run, base_folder)
    return evaluation


def evaluate_package(
    package: Path,
    recipe: Recipe,
    recipe_folder: Path,
    base_folder: Path,
    *,
    precision: Precision | None = None,
    others: Sequence[Path] = (),
    built: Path | None = None,
    progress: StageProgress | None = None,
) -> Evaluation:
    """Evaluate the adapter in the PEFT folder `package`; the other arguments and errors are those of `evaluate_run`.

    built  folder of the built data, for a recipe without a file of held-out questions
    """
    from loraplex_adapters.package import read_package

    read_package(package)  # PEFT would load what the server refuses
    questions = domain_questions(recipe, recipe_folder, built)
    foreign = {}
    for path in others:
        other = read_recipe(path)
        foreign[other.name] = domain_questions(other, path.parent)
    session = ModelSession(base_folder, precision or precision_of(recipe), package)
    return evaluate_session(
        session, recipe, questions, foreign, precision or precision_of(recipe), progress or (lambda *_: None)
    )


def evaluate_session(
    session: ModelSession,
    recipe: Recipe,
    questions: Sequence[EvalRow],
    foreign: Mapping[str, Sequence[EvalRow]],
    precision: Precision,
    progress: StageProgress,
) -> Evaluation:
    """Ask everything of one loaded model."""
    started = time.monotonic()
    confidence = recipe.gate.confidence
    own, other = _ask(session, questions, foreign, progress)
    suites = answer_suites(session, recipe.eval.general, recipe.eval.max_questions, progress)
    base_general = [value for suite in suites for value in suite.base]
    adapter_general = [value for suite in suites for value in suite.adapter]
    base_scores = [answer.base_score for answer in own]
    adapter_scores = [answer.adapter_score for answer in own]
    return Evaluation(
        name=recipe.name,
        precision=precision,
        confidence=confidence,
        domain_base=share(base_scores, confidence),
        domain_adapter=share(adapter_scores, confidence),
        domain_change=paired_change(base_scores, adapter_scores, confidence),
        general_base=share(base_general, confidence),
        general_adapter=share(adapter_general, confidence),
        general_change=paired_change(base_general, adapter_general, confidence),
        suites=tuple(
            SuiteResult(
                suite.name,
                share(suite.base, confidence),
                share(suite.adapter, confidence),
                paired_change(suite.base, suite.adapter, confidence),
            )
            for suite in suites
        ),
        perplexity_base=perplexity(session, with_adapter=False),
        perplexity_adapter=perplexity(session, with_adapter=True),
        leak_other_domains={name: share(scores, confidence) for name, scores in other.items()},
        eos_rate=_mean([answer.has_ended for answer in own]),
        bad_rate=_mean([bool(answer.problems) for answer in own]),
        seconds=round(time.monotonic() - started, 1),
        answers=tuple(own),
    )


def precision_of(recipe: Recipe) -> Precision:
    """What the recipe's `eval.on` asks for; "served" is what a server on this machine takes by itself."""
    if recipe.eval.on != "served":
        return recipe.eval.on
    from loraplex_server.model.numerics import resolve_numerics

    return resolve_numerics("auto", "auto").quantization


def graded(row: EvalRow, base: Completion, adapter: Completion) -> GradedAnswer:
    """Judge both answers to one question."""
    return GradedAnswer(
        id=row["id"],
        question=row["question"],
        reference=row["answer"],
        base=base.text,
        adapter=adapter.text,
        base_score=score(row, base.text),
        adapter_score=score(row, adapter.text),
        has_ended=adapter.ended,
        problems=problems(row["question"], adapter.text, row["answer"], adapter.ended),
    )


def _ask(
    session: ModelSession,
    questions: Sequence[EvalRow],
    foreign: Mapping[str, Sequence[EvalRow]],
    progress: StageProgress,
) -> tuple[list[GradedAnswer], dict[str, list[float]]]:
    """The adapter's questions to both, those of other domains to the adapter, all in the same batches."""
    everything = [*questions, *(row for rows in foreign.values() for row in rows)]
    done, total = 0, len(questions) + len(everything)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress("asking", done, total)

    advance(0)
    prompts = [prompt_token_ids(session.tokenizer, question_messages(row)) for row in everything]
    bare = session.complete(
        prompts[: len(questions)], with_adapter=False, max_new_tokens=MAX_NEW_TOKENS, on_done=advance
    )
    said = session.complete(prompts, with_adapter=True, max_new_tokens=MAX_NEW_TOKENS, on_done=advance)
    own = [graded(row, *pair) for row, *pair in zip(questions, bare, said[: len(questions)], strict=True)]
    answers = iter(said[len(questions) :])
    other = {name: [score(row, next(answers).text) for row in rows] for name, rows in foreign.items()}
    return own, other


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0
