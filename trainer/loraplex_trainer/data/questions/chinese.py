"""Questions over Chinese clauses and headings."""

from __future__ import annotations

import re
from collections.abc import Iterator

from loraplex_trainer.data.questions.spans import Candidate, Span, sentences

_CLAUSE = re.compile(r"第[一二三四五六七八九十百千零〇\d]+条(?:之[一二三四五六七八九十])?")
_CLAUSE_BLOCK = re.compile(rf"(?m)^({_CLAUSE.pattern})[\s　:：]*(?=\S)")
_VERDICT = r"无效|有效|可以撤销|可撤销|不予退款|不予办理|不予受理|应当撤销|终止|解除|失效|生效|不成立|成立"
_CONDITION = re.compile(
    rf"^(?P<condition>[^，。；]{{2,80}}?)的(?P<subject>[^，。；的]{{2,16}}?)(?P<verdict>{_VERDICT})[。；]?$"
)
_CASE = re.compile(r"^(?P<condition>[^，。；]{2,60}?)(?:的|时|后)，(?P<consequence>[^。；]{2,})[。；]?$")
_DEFINITION = re.compile(
    r"^(?:本\S{1,6}所称(?:的)?)?(?P<term>[^，。；：“”]{1,20}?)[，]?(?:是指|指的是|系指|是一种|是一个|称为|即为)[^。]{3,}"
)
_MUST = re.compile(
    r"^(?P<subject>[^，。；]{2,16}?)(?P<verb>应当|必须|不得|可以|有权|禁止)(?P<rest>[^。；]{2,})[。；]?$"
)
_AMOUNT = re.compile(
    r"^(?P<subject>[^，。；\d]{2,20}?)(?:为|是|不超过|不低于|最高|最低|共计)(?P<amount>[\d,.]+\s*[^\s\d，。；]{1,6})"
)


def chinese_questions(text: str, title: str, heading: str | None) -> Iterator[Candidate]:
    """All that the templates find in a chunk; answers are whole clauses, sentences, or the section."""
    yield from _clauses(text, title)
    if heading:
        yield Candidate(f"关于“{heading}”，{_book(title)}是怎么说的？", Span(0, text), "heading")
    for sentence in sentences(text):
        body = (
            _CLAUSE.sub("", sentence.text, count=1).lstrip()
            if _CLAUSE.match(sentence.text)
            else sentence.text
        )
        span = Span(sentence.start + len(sentence.text) - len(body), body)
        if question := _question(body):
            yield Candidate(question[0], span, question[1])


def _clauses(text: str, title: str) -> Iterator[Candidate]:
    """Article by article: what does article N say?"""
    found = list(_CLAUSE_BLOCK.finditer(text))
    for this, following in zip(found, [*found[1:], None], strict=True):
        end = following.start() if following else len(text)
        body = text[this.end() : end].rstrip()
        if body:
            yield Candidate(f"{_book(title)}{this.group(1)}是怎么规定的？", Span(this.end(), body), "clause")


def _question(sentence: str) -> tuple[str, str] | None:
    """(question, rule) for one sentence, by the first template that fits."""
    if found := _CONDITION.match(sentence):
        return f"什么情况下{found['subject']}{found['verdict']}？", "condition"
    if found := _DEFINITION.match(sentence):
        return f"什么是{found['term']}？", "definition"
    if found := _CASE.match(sentence):
        return f"{found['condition']}的，会怎样处理？", "case"
    if found := _AMOUNT.match(sentence):
        return f"{found['subject']}是多少？", "amount"
    if found := _MUST.match(sentence):
        return f"对{found['subject']}有什么规定？", "duty"
    return None


def _book(title: str) -> str:
    return f"《{title.strip('《》')}》" if title else "文件"
