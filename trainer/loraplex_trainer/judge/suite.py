"""The shipped suites of general questions, answered by the likelihood of the given choices.

`mini-mmlu` has four choices of school knowledge, `mini-glue` two of sentiment, entailment and paraphrase. Their text
was written for Loraplex and has its licence. A choice is scored as a continuation of its context: a small base cannot
follow "answer with a letter", but it finds the right answer likelier than the wrong ones.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files

from loraplex_trainer.errors import SuiteUnavailableError

SUITES = ("mini-mmlu", "mini-glue")
LM_EVAL_PREFIX = "lm-eval:"
_FOLDER = "loraplex_trainer.judge"
_GENERAL_TEXT = "suites/general.txt"


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """One question: the continuation of `context` that is right is `choices[answer]`, after one space."""

    id: str  # unique in its suite
    topic: str
    context: str
    choices: tuple[str, ...]  # two or more, all different
    answer: int  # index of the right choice


@dataclass(frozen=True, slots=True)
class Suite:
    """Questions that are judged together."""

    name: str
    questions: tuple[ChoiceQuestion, ...]

    @property
    def chance(self) -> float:
        """Expected share of right answers by guessing, in [0, 1]."""
        return sum(1 / len(question.choices) for question in self.questions) / len(self.questions)

    def first(self, max_questions: int | None) -> Suite:
        """At most so many questions, spread evenly over the suite; None: all."""
        total = len(self.questions)
        if max_questions is None or max_questions >= total:
            return self
        picked = [self.questions[index * total // max_questions] for index in range(max_questions)]
        return Suite(self.name, tuple(picked))


def load_suite(name: str) -> Suite:
    """A shipped suite. Raises SuiteUnavailableError for another name."""
    if name not in SUITES:
        known = ", ".join(SUITES)
        raise SuiteUnavailableError(
            f"there is no suite {name!r}; name {known}, or {LM_EVAL_PREFIX}TASK for a task of lm-eval"
        )
    lines = files(_FOLDER).joinpath(f"suites/{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return Suite(name, tuple(_question(json.loads(line)) for line in lines))


def general_text() -> str:
    """Five paragraphs of plain prose, for the perplexity on text of no domain."""
    return files(_FOLDER).joinpath(_GENERAL_TEXT).read_text(encoding="utf-8")


def _question(content: dict[str, object]) -> ChoiceQuestion:
    choices = content["choices"]
    assert isinstance(choices, list)
    return ChoiceQuestion(
        id=str(content["id"]),
        topic=str(content["topic"]),
        context=str(content["context"]),
        choices=tuple(map(str, choices)),
        answer=int(str(content["answer"])),
    )
