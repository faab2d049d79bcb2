"""What a rewritten question must keep word for word."""

from __future__ import annotations

import re
from collections import Counter

from loraplex_trainer.data.pii import MASKS
from loraplex_trainer.data.text import match_key

_NEGATIONS_EN = frozenset(
    "not no never none nobody nothing neither nor without cannot can't don't doesn't didn't isn't aren't wasn't won't "
    "wouldn't shouldn't mustn't haven't hasn't unless except".split()
)
_NEGATIONS_ZH = "不没無无未非别勿莫否禁"
_UNITS = (
    "元|块|角|分|万|亿|千|百|天|日|周|月|年|小时|分钟|秒|个|件|张|次|人|名|公里|千米|米|厘米|毫米|克|千克|公斤|斤|吨|升|毫升|度|%|\uff05|‰|"
    r"percent|dollars?|euros?|cents?|pounds?|yuan|days?|hours?|minutes?|seconds?|weeks?|months?|years?|km|cm|mm|m|kg|g|mg|l|ml|mb|gb|tb|kb|°c|°f"
)
_NUMBER = re.compile(rf"[A-Za-z]*\d[\w.,:/\-]*(?:\s?(?:{_UNITS})(?![A-Za-z]))?", re.IGNORECASE)
_NUMBER_ZH = re.compile(rf"[一二两三四五六七八九十百千万亿零〇]+(?:{_UNITS})")
_QUOTED = re.compile(r"《[^》]*》|「[^」]*」|『[^』]*』|“[^”]*”|\"[^\"]*\"|‘[^’]*’|`[^`]*`|<[^<>\s][^<>]*>")
_NAME = re.compile(r"\b[A-Z][\w'’&-]*")
_ACRONYM = re.compile(r"\b(?=\w*[A-Z]\w*[A-Z])\w+\b")
_WORD = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)*")
_SENTENCE_START = re.compile(r"(?:\A|[.!?:]\s+)[\"“‘(]*$")


def protected_spans(text: str, answer: str = "") -> list[tuple[int, int]]:
    """Numbers with their units, quoted words, names, capitals, negations, and words that the answer uses too."""
    spans = [
        found.span()
        for pattern in (_NUMBER, _NUMBER_ZH, _QUOTED, _ACRONYM)
        for found in pattern.finditer(text)
    ]
    spans += [
        found.span() for found in _NAME.finditer(text) if not _SENTENCE_START.search(text[: found.start()])
    ]
    spans += [(i, i + 1) for i, character in enumerate(text) if character in _NEGATIONS_ZH]
    answered = {word.lower() for word in _WORD.findall(answer)}
    for found in _WORD.finditer(text):
        word = found.group().lower().replace("’", "'")
        if word in _NEGATIONS_EN or (len(word) > 3 and word in answered):
            spans.append(found.span())
    return spans


def protected_tokens(text: str) -> Counter[str]:
    """What of a question a paraphrase must hold: numbers, quotes, names, masks; and how many negations."""
    tokens = [
        found.group()
        for pattern in (_NUMBER, _NUMBER_ZH, _QUOTED, _ACRONYM)
        for found in pattern.finditer(text)
    ]
    tokens += [
        found.group() for found in _NAME.finditer(text) if not _SENTENCE_START.search(text[: found.start()])
    ]
    counted = Counter({match_key(token): 1 for token in tokens if match_key(token)})
    counted["negations"] = num_negations(text)
    counted.update({mask: text.count(mask) for mask in MASKS if mask in text})
    return counted


def num_negations(text: str) -> int:
    """Negating words and characters."""
    english = sum(word.lower().replace("’", "'") in _NEGATIONS_EN for word in _WORD.findall(text))
    return english + sum(character in _NEGATIONS_ZH for character in text)


def keeps_protected(question: str, rewritten: str) -> bool:
    """Whether all that is protected in a question stands in its new form, and nothing was negated or measured anew."""
    before, after = protected_tokens(question), protected_tokens(rewritten)
    if before["negations"] != after["negations"]:
        return False
    key = match_key(rewritten)
    new_numbers = {token for token in after if any(c.isdigit() for c in token)} - set(before)
    return not new_numbers and all(
        token in key or token in rewritten for token in before if token != "negations"
    )
