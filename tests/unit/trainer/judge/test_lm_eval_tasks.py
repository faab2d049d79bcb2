from __future__ import annotations

import sys
from typing import Any

import pytest

from loraplex_trainer.errors import SuiteUnavailableError
from loraplex_trainer.judge.lm_eval_tasks import answer_task, sample_scores


def test_without_lm_eval_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    session: Any = None

    with pytest.raises(SuiteUnavailableError, match=r"loraplex\[lm-eval\]"):
        answer_task(session, "mmlu", None)


def test_scores_come_in_the_order_of_tasks_and_documents() -> None:
    samples = {
        "b": [{"doc_id": 0, "acc": 1.0}],
        "a": [{"doc_id": 10, "acc": 0.0}, {"doc_id": 2, "acc": 1.0}],
    }

    assert sample_scores(samples) == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("samples", [{}, {"a": []}, {"a": [{"doc_id": 0, "bleu": 3.0}]}])
def test_a_task_without_judged_questions_is_refused(samples: dict[str, Any]) -> None:
    with pytest.raises(SuiteUnavailableError):
        sample_scores(samples)
