"""New questions by exchanging words for synonyms of a lexicon."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path

from loraplex_trainer.data.protected import protected_spans
from loraplex_trainer.data.text import has_cjk, match_key
from loraplex_trainer.errors import TrainingDataError

Lexicon = Mapping[str, tuple[str, ...]]
_TRIES = 12  # draws for each wanted question
_MAX_CHANGES = 3  # words of a question


def read_lexicon(path: Path | None) -> Lexicon:
    """Lines of a word and what may replace it, separated by tabs; # begins a comment. None: the bundled one.

    Raises TrainingDataError naming the line at fault.
    """
    if path is None:
        text, name = (
            (files("loraplex_trainer.data") / "lexicon.tsv").read_text(encoding="utf-8"),
            "lexicon.tsv",
        )
    else:
        name = path.name
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TrainingDataError(f"data.augment.lexicon: {name} cannot be read as UTF-8 text") from error
    lexicon: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = [word.strip() for word in line.split("\t") if word.strip()]
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 2:
            raise TrainingDataError(
                f"data.augment.lexicon: {name}, line {number}: needs two words or more, with tabs between"
            )
        lexicon[words[0].lower()] = (*lexicon.get(words[0].lower(), ()), *words[1:])
    return lexicon


def synonym_questions(question: str, answer: str, lexicon: Lexicon, count: int, seed: str) -> list[str]:
    """Up to `count` different new forms, the same for the same seed. What is protected stays as it is."""
    places = list(_places(question, answer, lexicon))
    if not places:
        return []
    rng = random.Random(seed)
    found: dict[str, str] = {}
    for _ in range(_TRIES * count):
        chosen = sorted(rng.sample(places, k=rng.randint(1, min(_MAX_CHANGES, len(places)))))
        new, position = [], 0
        for start, end, word in chosen:
            new += [question[position:start], _like(question[start:end], rng.choice(lexicon[word]))]
            position = end
        rewritten = "".join([*new, question[position:]])
        key = match_key(rewritten)
        if key != match_key(question):
            found.setdefault(key, rewritten)
        if len(found) == count:
            break
    return list(found.values())


def _places(question: str, answer: str, lexicon: Lexicon) -> Iterator[tuple[int, int, str]]:
    """(start, end, word) of what may be exchanged; longest words first, none twice."""
    protected = protected_spans(question, answer)
    taken: list[tuple[int, int]] = []
    for word in sorted(lexicon, key=lambda word: (-len(word), word)):
        is_chinese = has_cjk(word)
        pattern = re.escape(word) if is_chinese else rf"(?<![\w'’-]){re.escape(word)}(?![\w'’-])"
        for found in re.finditer(pattern, question if is_chinese else question.lower()):
            start, end = found.span()
            if any(
                start < other_end and other_start < end for other_start, other_end in [*protected, *taken]
            ):
                continue
            if is_chinese and (word in answer or _is_negated(question, start)):
                continue
            taken.append((start, end))
            yield start, end, word


def _is_negated(question: str, start: int) -> bool:
    return question[max(0, start - 1) : start] in tuple("不没无未非别勿")


def _like(old: str, new: str) -> str:
    return new[:1].upper() + new[1:] if old[:1].isupper() else new
