"""What can be wrong with a sampled answer. Pure functions of text; right or wrong facts are the judge's matter."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_WORD = re.compile(r"[⺀-鿿豈-﫿぀-ヿ가-힯]|[^\W_⺀-鿿豈-﫿぀-ヿ가-힯]+")
_MIN_LETTERS = 4  # fewer say nothing about a language
_NGRAM = 3
_MIN_REPEATS = 4
_MIN_OVERLAP = 0.1


def problems(question: str, answer: str, reference: str, has_ended: bool) -> tuple[str, ...]:
    """Names of what is wrong: empty, no-eos, repetition, echo, language, off-topic; () for a sound answer."""
    if not words(answer):
        return ("empty",)
    found = {
        "no-eos": not has_ended,
        "repetition": repeats(answer),
        "echo": echoes(question, answer, reference),
        "language": _flips_language(answer, reference),
        "off-topic": overlap(answer, reference) < _MIN_OVERLAP,
    }
    return tuple(name for name, is_so in found.items() if is_so)


def words(text: str) -> list[str]:
    """Words in lower case; Chinese, Japanese and Korean characters stand alone."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def repeats(text: str) -> bool:
    """Whether three words, or one sentence, come again and again."""
    found = words(text)
    grams = Counter(tuple(found[i : i + _NGRAM]) for i in range(len(found) - _NGRAM + 1))
    if not grams:
        return False
    _, count = grams.most_common(1)[0]
    # A list may begin its items alike; a loop is made of little else than the repeated words.
    return count >= _MIN_REPEATS and count * _NGRAM >= len(found) / 2


def echoes(question: str, answer: str, reference: str) -> bool:
    """Whether the answer is the question over again, and the reference is not."""
    asked, said, known = (words(text) for text in (question, answer, reference))
    return said == asked and known != asked


def overlap(answer: str, reference: str) -> float:
    """F1 of the words that both share, in [0, 1]."""
    said, known = Counter(words(answer)), Counter(words(reference))
    shared = (said & known).total()
    total = said.total() + known.total()
    return 2 * shared / total if total else 1.0


def _flips_language(answer: str, reference: str) -> bool:
    said, known = _script(answer), _script(reference)
    return said is not None and known is not None and said != known


def _script(text: str) -> str | None:
    """The script of most letters, e.g. "LATIN" or "CJK"; None where there are too few."""
    scripts = Counter(unicodedata.name(letter, "").partition(" ")[0] for letter in text if letter.isalpha())
    if scripts.total() < _MIN_LETTERS:
        return None
    return scripts.most_common(1)[0][0]
