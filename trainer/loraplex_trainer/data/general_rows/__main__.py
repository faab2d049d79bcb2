"""Writes general.jsonl: `python -m loraplex_trainer.data.general_rows FILE`. The same bytes for the same sources."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from loraplex_trainer.data.general_rows.choices import choices
from loraplex_trainer.data.general_rows.knowledge import questions
from loraplex_trainer.data.general_rows.pairs import entailments, grammar, paraphrases, sentiments
from loraplex_trainer.data.general_rows.reckoning import reckoning
from loraplex_trainer.data.general_rows.writing import tasks

SEED = 20260901
_OF_EACH = 9  # computed questions of every kind
_LETTERS = "ABCD"


def conversations() -> list[tuple[str, ...]]:
    """Turns of every conversation, the user's first, in the file's order."""
    rng = random.Random(SEED)
    found: list[tuple[str, ...]] = [*questions(), *tasks(), *reckoning(rng, _OF_EACH)]
    found += [_choice(rng, *item) for item in choices()]
    found += [_yes_no(rng, _PARAPHRASE, *item) for item in paraphrases()]
    found += [_yes_no(rng, _ENTAILMENT, *item) for item in entailments()]
    found += [(rng.choice(_SENTIMENT).format(text), mood) for text, mood in sentiments()]
    found += [(rng.choice(_GRAMMAR).format(text), answer.title() + ".") for text, answer in grammar()]
    rng.shuffle(found)
    return found


def general_text() -> str:
    """Content of general.jsonl."""
    return "".join(
        json.dumps({"messages": _messages(turns)}, ensure_ascii=False) + "\n" for turns in conversations()
    )


_PARAPHRASE = (
    "Do these two sentences mean the same? Answer yes or no.\n1. {}\n2. {}",
    "“{}” “{}” Do both say the same thing, yes or no?",
)
_ENTAILMENT = (
    "“{}” If that is true, must this be true as well: “{}”? Answer yes or no.",
    "Premise – {}\nHypothesis – {}\nDoes the hypothesis follow? Yes or no.",
)
_SENTIMENT = (
    "Is the mood of this text positive or negative?\n{}",
    "Say positive or negative: {}",
    "A customer writes: “{}” Is that positive or negative?",
)
_GRAMMAR = ("Is this sentence correct English? Yes or no.\n{}", "“{}” Is the grammar right, yes or no?")


def _choice(
    rng: random.Random, subject: str, question: str, right: str, wrong: Sequence[str]
) -> tuple[str, str]:
    options = [right, *wrong]
    rng.shuffle(options)
    letter = _LETTERS[options.index(right)]
    lettered = "\n".join(f"{_LETTERS[i]}. {option}" for i, option in enumerate(options))
    match rng.randrange(4):
        case 0:
            return f"A question about {subject}. {question}\n{lettered}\nAnswer with the letter.", letter
        case 1:
            return f"{question}\n{lettered}\nWhich letter is right?", f"{letter}. {right}"
        case 2:
            return (
                f"Choose the right answer.\n\n{question}\n{lettered}",
                f"The right answer is {letter}: {right}.",
            )
        case _:
            return question, right[:1].upper() + right[1:]


def _yes_no(
    rng: random.Random, forms: Sequence[str], first: str, second: str, answer: str
) -> tuple[str, str]:
    return rng.choice(forms).format(first, second), answer.title() + rng.choice(("", "."))


def _messages(turns: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": "assistant" if i % 2 else "user", "content": turn} for i, turn in enumerate(turns)]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(general_text(), encoding="utf-8")
