"""Questions that a model writes over a given answer. The answer stays the document's own words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from loraplex_trainer.data.questions.spans import Candidate, Span, sentences
from loraplex_trainer.data.text import has_cjk, is_mostly_cjk, match_key

Ask = Callable[[str], str]
"""Sends one prompt to a model and returns its answer."""

_MIN_ANSWER_CHARS = {True: 8, False: 25}  # Chinese: a sentence says as much in a third of the characters
_MAX_QUESTION_CHARS = 200
_PROMPTS = {
    True: "请根据下面的句子写一个问题，使这个句子成为它的答案。只写一个问题，以问号结尾，不要写答案。\n\n"
    "句子：{answer}\n\n问题：",
    False: "Write one question that the sentence below answers. Write only the question, with a question mark.\n\n"
    "Sentence: {answer}\n\nQuestion:",
}


def written_questions(text: str, ask: Ask) -> Iterator[Candidate | None]:
    """One candidate per sentence that is long enough; None where the model's text is no usable question."""
    for sentence in sentences(text):
        is_chinese = is_mostly_cjk(sentence.text)
        if len(sentence.text) < _MIN_ANSWER_CHARS[is_chinese] or sentence.text.endswith(("?", "？")):
            continue
        yield _candidate(ask(_PROMPTS[is_chinese].format(answer=sentence.text)), sentence)


def _candidate(reply: str, answer: Span) -> Candidate | None:
    question = usable_question(reply, answer.text)
    return None if question is None else Candidate(question, answer, "model")


def usable_question(reply: str, answer: str) -> str | None:
    """The question in a reply: one line with a question mark, in the answer's language, that does not give it away."""
    lines = [line.strip() for line in reply.strip().splitlines() if line.strip()]
    if not lines:
        return None
    question = re.sub(r"^(?:\d{1,2}[.)]\s*|[-*]\s*|(?:Question|Q|问题|问)\s*[:：]\s*)", "", lines[0]).strip(
        " \"“”'*"
    )
    end = max(question.find("?"), question.find("？"))
    if end < 4 or end + 1 > _MAX_QUESTION_CHARS or "<|" in question or "[INST]" in question:
        return None
    question = question[: end + 1]
    if has_cjk(question) != has_cjk(answer) or match_key(answer) in match_key(question):
        return None
    return question
