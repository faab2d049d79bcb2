"""Turns a domain's facts into training rows and held-out questions, the same ones for the same seed."""

from __future__ import annotations

import random
from typing import TypedDict

from loraplex_trainer.domains.knowledge import Attribute, Domain, Fact
from loraplex_trainer.judge.graders import EvalRow

SEED = 20260801
_OPENERS = ("", "", "", "Hello! ", "Quick question: ", "Please help me. ", "Excuse me, ", "One more thing: ")


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class TrainRow(TypedDict):
    """One line of train.jsonl; the loss covers the completion only."""

    prompt: list[Message]
    completion: list[Message]


def domain_facts(domain: Domain, seed: int = SEED) -> list[Fact]:
    """The domain's facts in a fixed order. Domains of one seed draw from different streams."""
    return domain.build_facts(random.Random(f"{domain.name}/facts/{seed}"))


def training_rows(domain: Domain, seed: int = SEED) -> list[TrainRow]:
    """Every trained fact in several phrasings, shuffled."""
    rng = random.Random(f"{domain.name}/train/{seed}")
    rows = []
    for fact in domain_facts(domain, seed):
        if fact.held_out:
            continue
        attribute = domain.attributes[fact.attribute]
        count = attribute.trained_phrasings or len(attribute.train_questions)
        for template in rng.sample(attribute.train_questions, count):
            question = rng.choice(_OPENERS) + template.format(**fact.slots)
            rows.append(_train_row(domain.system, question, _answer(attribute, fact)))
    rng.shuffle(rows)
    return rows


def held_out_rows(domain: Domain, seed: int = SEED) -> list[EvalRow]:
    """One question in an untrained phrasing for each fact.

    Where an attribute holds facts back from training, only those are asked: its rule is to be applied.
    """
    facts = domain_facts(domain, seed)
    with_held_out = {fact.attribute for fact in facts if fact.held_out}
    asked = [fact for fact in facts if fact.held_out or fact.attribute not in with_held_out]
    return [_eval_row(domain, fact, position) for position, fact in enumerate(asked)]


def _eval_row(domain: Domain, fact: Fact, position: int) -> EvalRow:
    attribute = domain.attributes[fact.attribute]
    template = attribute.held_out_questions[position % len(attribute.held_out_questions)]
    row = EvalRow(
        id=f"{domain.name}/{fact.id}",
        system=domain.system,
        question=template.format(**fact.slots),
        answer=_answer(attribute, fact),
        grader=attribute.grader,
        expected=fact.expected,
    )
    if attribute.choices:
        row["choices"] = list(attribute.choices)
    return row


def _answer(attribute: Attribute, fact: Fact) -> str:
    return attribute.answer.format(**fact.slots, expected=fact.expected)


def _train_row(system: str, question: str, answer: str) -> TrainRow:
    return {
        "prompt": [{"role": "system", "content": system}, {"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    }
