"""Documents → questions whose answers are spans of the document, word for word."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from loraplex_trainer.data.conversation import BadRecordError, Conversation, Rejected
from loraplex_trainer.data.documents import Chunk, Document, chunks_of
from loraplex_trainer.data.progress import Progress
from loraplex_trainer.data.questions.chinese import chinese_questions
from loraplex_trainer.data.questions.english import english_questions
from loraplex_trainer.data.questions.spans import Candidate, Span
from loraplex_trainer.data.questions.written import Ask, written_questions
from loraplex_trainer.data.readers.dialogues import dialogue_conversations
from loraplex_trainer.data.roles import has_turns
from loraplex_trainer.data.text import is_mostly_cjk, match_key

_MAX_ANSWER_CHARS = 2400
_FAQ = re.compile(
    r"(?m)^(?:#{1,6}\s*)?(?P<question>[^\n?？]{4,150}[?？])[ \t]*\n+(?P<answer>\S[^\n]*(?:\n(?!\n)[^\n]+)*)"
)


@dataclass
class Grounded:
    """What the documents gave."""

    conversations: list[Conversation] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    num_pages: int = 0
    num_chunks: int = 0
    by_rule: Counter[str] = field(default_factory=Counter)


def grounded_questions(
    documents: Sequence[Document], chunk_chars: int, ask: Ask | None, progress: Progress
) -> Grounded:
    """Questions over every chunk: by the document's own questions and by templates; with `ask` by the model too."""
    found = Grounded(num_pages=sum(len(document.pages) for document in documents))
    chunks = [chunk for document in documents for chunk in chunks_of(document, chunk_chars)]
    found.num_chunks = len(chunks)
    for number, chunk in enumerate(chunks):
        progress("building questions", number, len(chunks))
        _add_chunk(chunk, ask, found)
    if chunks:
        progress("building questions", len(chunks), len(chunks))
    return found


def _add_chunk(chunk: Chunk, ask: Ask | None, found: Grounded) -> None:
    asked: set[str] = set()
    for candidate in _candidates(chunk, ask):
        if candidate is None:
            found.rejected.append(Rejected(chunk.origin, "the model wrote no usable question"))
            continue
        answer, key = candidate.answer, match_key(candidate.question)
        if key in asked or not answer.text or len(answer.text) > _MAX_ANSWER_CHARS:
            continue
        if chunk.text[answer.start : answer.start + len(answer.text)] != answer.text:
            raise BadRecordError(
                "an answer is not a span of its chunk"
            )  # a bug of a template; no row may hide it
        asked.add(key)
        found.by_rule[candidate.rule] += 1
        found.conversations.append(
            Conversation(
                turns=(
                    {"role": "user", "content": candidate.question},
                    {"role": "assistant", "content": answer.text},
                ),
                origin=chunk.at(answer.start),
                source=chunk.source,
                evidence=chunk.text,
            )
        )


def _candidates(chunk: Chunk, ask: Ask | None) -> Iterator[Candidate | None]:
    own = list(_own_questions(chunk))
    if own:
        yield from own
        return
    templates = chinese_questions if is_mostly_cjk(chunk.text) else english_questions
    heading = chunk.heading
    if heading is not None and match_key(heading) == match_key(chunk.title):
        heading = None  # "what does X say about X" asks nothing
    if heading and heading.endswith(("?", "？")):
        yield Candidate(heading, Span(0, chunk.text), "question heading")
        heading = None
    yield from templates(chunk.text, chunk.title, heading)
    if ask is not None:
        yield from written_questions(chunk.text, ask)


def _own_questions(chunk: Chunk) -> Iterator[Candidate]:
    """Questions that the document itself asks and answers."""
    if has_turns(chunk.text):
        for item in dialogue_conversations(chunk.text, chunk.source):
            if isinstance(item, Conversation) and len(item.turns) == 2:
                answer = item.turns[1]["content"]
                start = chunk.text.find(answer)
                if start >= 0:
                    yield Candidate(item.turns[0]["content"], Span(start, answer), "question and answer")
        return
    for found in _FAQ.finditer(chunk.text):
        answer = found["answer"].rstrip()
        if not answer.endswith(("?", "？")):
            yield Candidate(
                found["question"].strip(), Span(found.start("answer"), answer), "question and answer"
            )
