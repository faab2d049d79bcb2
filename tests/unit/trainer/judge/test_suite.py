from __future__ import annotations

from collections import Counter

import pytest

from loraplex_trainer.errors import SuiteUnavailableError
from loraplex_trainer.judge.suite import SUITES, general_text, load_suite

each_suite = pytest.mark.parametrize("name", SUITES)


@each_suite
def test_every_question_has_one_right_choice_among_different_ones(name: str) -> None:
    suite = load_suite(name)

    assert len({question.id for question in suite.questions}) == len(suite.questions)
    assert len({question.context for question in suite.questions}) == len(suite.questions)
    for question in suite.questions:
        assert len(set(question.choices)) == len(question.choices)
        assert 0 <= question.answer < len(question.choices)
        assert all(choice == choice.strip() for choice in question.choices)
        assert question.context == question.context.strip()


def test_the_suites_are_as_large_as_their_intervals_need() -> None:
    mmlu, glue = (load_suite(name) for name in SUITES)

    assert len(mmlu.questions) >= 150
    assert len(glue.questions) >= 90
    assert {len(question.choices) for question in mmlu.questions} == {4}
    assert {len(question.choices) for question in glue.questions} == {2}
    assert Counter(question.topic for question in glue.questions) == {
        "sentiment": 50,
        "entailment": 50,
        "paraphrase": 50,
    }
    assert (mmlu.chance, glue.chance) == (0.25, 0.5)


@each_suite
def test_no_place_among_the_choices_is_favoured(name: str) -> None:
    suite = load_suite(name)
    places = Counter(question.answer for question in suite.questions)

    assert max(places.values()) <= 1.5 * len(suite.questions) * suite.chance


@each_suite
def test_a_smaller_suite_is_spread_over_the_whole(name: str) -> None:
    suite = load_suite(name)

    assert suite.first(None) == suite.first(10**6) == suite
    part = suite.first(20)
    assert len(set(part.questions)) == 20
    assert {question.topic for question in part.questions} == {question.topic for question in suite.questions}


def test_a_suite_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(SuiteUnavailableError, match=r"mini-mmlu, mini-glue, or lm-eval:TASK"):
        load_suite("mmlu")


def test_the_general_text_is_prose() -> None:
    assert len(general_text().split()) > 300
