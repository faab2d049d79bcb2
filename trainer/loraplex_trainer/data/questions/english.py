"""Questions over English sentences and headings."""

from __future__ import annotations

import re
from collections.abc import Iterator

from loraplex_trainer.data.questions.spans import Candidate, Span, bounded, sentences

_ARTICLE = r"(?:(?:An?|The|This|That|Each|Every|All|Any)\s+)"
_PRONOUNS = frozenset(
    "it this that these those they he she we you i there here which what who such some many most".split()
)
_DEFINITION = re.compile(
    r"^(?:(?P<article>An?|The)\s+)?(?P<term>[A-Za-z][\w'’-]*(?:\s+[\w'’-]+){0,4})"
    r"\s+(?P<verb>is|are|means|refers to|denotes)\s+(?P<rest>\S.{6,})$"
)
_DUTY = re.compile(
    rf"^(?P<subject>{_ARTICLE}?[A-Za-z][\w'’-]*(?:\s+[\w'’-]+){{0,5}}?)"
    r"\s+(?P<verb>must not|must|shall not|shall|may not|may|can|cannot|should)\s+(?P<rest>\S.{4,})$"
)
_CASE = re.compile(r"^(?P<word>If|When|Where|Once|Unless)\s+(?P<condition>[^,]{6,120}),\s+(?P<rest>\S.{6,})$")
_PURPOSE = re.compile(r"^To\s+(?P<purpose>[a-z][^,]{3,80}),\s+(?P<rest>\S.{4,})$")
_CLAUSE_BLOCK = re.compile(r"(?m)^((?:Article|Section|Clause|Rule)\s+\d+(?:\.\d+)*)[.:)]?\s+(?=\S)")


def english_questions(text: str, title: str, heading: str | None) -> Iterator[Candidate]:
    """All that the templates find in a chunk; answers are whole clauses, sentences, or the section."""
    for clause, end in bounded(_CLAUSE_BLOCK, text):
        if body := text[clause.end() : end].rstrip():
            question = f"What does {clause.group(1)} of {_quoted(title)} say?"
            yield Candidate(question, Span(clause.end(), body), "clause")
    if heading and heading.endswith("?"):
        yield Candidate(heading, Span(0, text), "question heading")
    elif heading:
        yield Candidate(f"What does {_quoted(title)} say about {_quoted(heading)}?", Span(0, text), "heading")
    for sentence in sentences(text):
        if found := _question(sentence.text):
            yield Candidate(found[0], sentence, found[1])


def _question(sentence: str) -> tuple[str, str] | None:
    """(question, rule) for one sentence, by the first template that fits."""
    if sentence.endswith("?"):
        return None
    if found := _CASE.match(sentence):
        return f"What happens {found['word'].lower()} {_lowered(found['condition'])}?", "case"
    if found := _PURPOSE.match(sentence):
        return f"How do I {found['purpose']}?", "purpose"
    if (found := _DUTY.match(sentence)) and _is_subject(found["subject"]):
        if found["rest"].startswith("be "):
            return f"What is the rule for {_lowered(found['subject'])}?", "duty"
        verb = {"cannot": "can", "must not": "must", "shall not": "shall", "may not": "may"}.get(
            found["verb"], found["verb"]
        )
        negated = "not " if "not" in found["verb"] else ""
        return f"What {verb} {_lowered(found['subject'])} {negated}do?", "duty"
    if (found := _DEFINITION.match(sentence)) and _is_subject(found["term"]):
        verb = "are" if found["verb"] == "are" else "is"
        article = f"{found['article'].lower()} " if found["article"] else ""
        return (
            f"What {verb} {article}{_lowered(found['term']) if not article else found['term']}?",
            "definition",
        )
    return None


def _is_subject(words: str) -> bool:
    """Whether a question can name it: no pronoun, no half sentence."""
    lowered = words.lower().split()
    return (
        bool(lowered)
        and lowered[0] not in _PRONOUNS
        and not {"that", "which", "who", "if", "and", "but"} & set(lowered)
    )


def _lowered(text: str) -> str:
    """As within a sentence: the first letter small, unless the word is a name or in capitals."""
    first, _, rest = text.partition(" ")
    is_plain = first.lower() in {
        "a",
        "an",
        "the",
        "this",
        "that",
        "each",
        "every",
        "all",
        "any",
        "you",
        "your",
        "we",
    } or (first[1:].islower() and first.lower().endswith(("s", "er", "or", "tion", "ment")))
    return (first.lower() if is_plain else first) + (f" {rest}" if rest else "")


def _quoted(text: str) -> str:
    return f"“{text}”" if text else "the document"
