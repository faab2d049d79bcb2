"""General ability: the shipped suites, tasks of lm-eval, and the perplexity of plain prose."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loraplex_trainer.judge.model_session import ModelSession, OnDone
from loraplex_trainer.judge.suite import LM_EVAL_PREFIX, Suite, general_text, load_suite

_WINDOW = 256  # tokens of prose that are scored together

StageProgress = Callable[[str, int, int], None]
"""Called with (stage, done, total), first with 0."""


@dataclass(frozen=True, slots=True)
class SuiteScores:
    """Right (1) or wrong (0) for each question of a suite, base and adapter in the same order."""

    name: str
    base: list[float]
    adapter: list[float]


def answer_suites(
    session: ModelSession, names: Sequence[str], max_questions: int | None, progress: StageProgress
) -> list[SuiteScores]:
    """Base and adapter on every named suite. Raises SuiteUnavailableError before anything is asked."""
    shipped = {
        name: load_suite(name).first(max_questions) for name in names if not name.startswith(LM_EVAL_PREFIX)
    }
    scores = []
    for name in names:
        if name in shipped:
            scores.append(_answer_shipped(session, shipped[name], progress))
        else:
            from loraplex_trainer.judge.lm_eval_tasks import answer_task

            progress(name, 0, 1)
            base, adapter = answer_task(session, name.removeprefix(LM_EVAL_PREFIX), max_questions)
            scores.append(SuiteScores(name, base, adapter))
            progress(name, 1, 1)
    return scores


def choose(
    session: ModelSession, suite: Suite, *, with_adapter: bool, on_done: OnDone | None = None
) -> list[int]:
    """Index of the likeliest choice of each question, by the mean log-probability of a choice's tokens."""
    pairs, owners = [], []
    for index, question in enumerate(suite.questions):
        context = session.tokenizer(question.context)["input_ids"]
        for choice in question.choices:
            pairs.append((context, session.tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]))
            owners.append(index)
    sums = session.log_likelihoods(pairs, with_adapter=with_adapter, on_done=on_done)
    means: list[list[float]] = [[] for _ in suite.questions]
    for owner, (_, continuation), total in zip(owners, pairs, sums, strict=True):
        means[owner].append(total / len(continuation))
    return [row.index(max(row)) for row in means]


def perplexity(session: ModelSession, *, with_adapter: bool) -> float:
    """Of each token of the general text but the first of every window, given those before it."""
    ids = session.tokenizer(general_text(), add_special_tokens=False)["input_ids"]
    windows = [ids[start : start + _WINDOW] for start in range(0, len(ids), _WINDOW)]
    pairs = [(window[:1], window[1:]) for window in windows if len(window) > 1]
    total = sum(session.log_likelihoods(pairs, with_adapter=with_adapter))
    return math.exp(-total / sum(len(continuation) for _, continuation in pairs))


def _answer_shipped(session: ModelSession, suite: Suite, progress: StageProgress) -> SuiteScores:
    total = 2 * sum(len(question.choices) for question in suite.questions)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(suite.name, done, total)

    advance(0)
    scores = []
    for with_adapter in (False, True):
        chosen = choose(session, suite, with_adapter=with_adapter, on_done=advance)
        scores.append([float(pick == q.answer) for pick, q in zip(chosen, suite.questions, strict=True)])
    return SuiteScores(suite.name, *scores)
