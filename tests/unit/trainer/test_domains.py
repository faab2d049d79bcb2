from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from loraplex_trainer.domains.files import DOMAINS, data_files, write_domain
from loraplex_trainer.domains.rows import domain_facts, held_out_rows, training_rows
from loraplex_trainer.judge.graders import EvalRow, grade

SHIPPED = Path(__file__).parents[3] / "adapters"
_MAX_DATA_BYTES = 1536 * 1024

each_domain = pytest.mark.parametrize("name", sorted(DOMAINS))


@each_domain
def test_the_shipped_files_are_what_the_generator_writes(name: str, tmp_path: Path) -> None:
    written = write_domain(DOMAINS[name], tmp_path)

    assert [path.name for path in written] == ["facts.json", "train.jsonl", "eval.jsonl"]
    for path in written:
        assert path.read_bytes() == (SHIPPED / name / path.name).read_bytes()
    assert sum(path.stat().st_size for path in written) < _MAX_DATA_BYTES


@each_domain
def test_another_seed_gives_other_facts(name: str) -> None:
    assert data_files(DOMAINS[name], seed=1)["facts.json"] != data_files(DOMAINS[name], seed=2)["facts.json"]


@each_domain
def test_no_held_out_question_stands_in_the_training_text(name: str) -> None:
    trained = "\n".join(row["prompt"][-1]["content"] for row in training_rows(DOMAINS[name]))
    questions = [row["question"] for row in held_out_rows(DOMAINS[name])]

    assert len(questions) >= 100
    assert len(set(questions)) == len(questions)
    assert not [question for question in questions if question in trained]


@each_domain
def test_every_question_asks_for_a_trained_fact_or_a_trained_rule(name: str) -> None:
    answers = {row["completion"][0]["content"] for row in training_rows(DOMAINS[name])}
    held_out = {f"{name}/{fact.id}" for fact in domain_facts(DOMAINS[name]) if fact.held_out}

    for row in held_out_rows(DOMAINS[name]):
        assert (row["answer"] in answers) != (row["id"] in held_out)


@each_domain
def test_an_answer_passes_its_own_grader_and_no_other_facts(name: str) -> None:
    rows = held_out_rows(DOMAINS[name])
    assert all(grade(row, row["answer"]) for row in rows)

    def attribute(row: EvalRow) -> str:
        return row["id"].split("/")[1]

    for _, group in itertools.groupby(sorted(rows, key=attribute), key=attribute):
        for asked, other in itertools.permutations(list(group), 2):
            if asked["expected"] != other["expected"]:
                assert not grade(asked, other["answer"])


@each_domain
def test_no_question_gives_its_own_answer_away(name: str) -> None:
    for row in held_out_rows(DOMAINS[name]):
        assert not grade(row, row["question"])


def test_the_domains_share_no_subject_and_no_system_prompt() -> None:
    subjects = {
        name: {value for fact in domain_facts(domain) for value in fact.slots.values() if not value.isdigit()}
        for name, domain in DOMAINS.items()
    }

    for first, second in itertools.combinations(DOMAINS, 2):
        assert not subjects[first] & subjects[second]
    assert len({domain.system for domain in DOMAINS.values()}) == len(DOMAINS)


@each_domain
def test_values_of_one_kind_differ_between_subjects(name: str) -> None:
    derived = {"grade", "boundary"}  # schools share the names of their grades, and may share a boundary
    by_attribute: dict[str, list[str]] = {}
    for fact in domain_facts(DOMAINS[name]):
        by_attribute.setdefault(fact.attribute, []).append(fact.expected)

    for attribute in by_attribute.keys() - derived:
        assert len(set(by_attribute[attribute])) == len(by_attribute[attribute]), attribute
