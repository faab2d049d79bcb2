"""Questions over Chinese clauses and headings."""

from __future__ import annotations

import re
from collections.abc import Iterator

from loraplex_trainer.data.questions.spans import Candidate, Span, bounded, sentences

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
_ACT = re.compile("行为|合同|协议|条款|约定|遗嘱|婚姻")  # what has an effect in law
_WHO = re.compile("自|在|于|对|按照|因|以")  # ends the subject, begins when and how
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
        for question, rule in _questions(body):
            yield Candidate(question, span, rule)


def _clauses(text: str, title: str) -> Iterator[Candidate]:
    """Article by article: what does article N say?"""
    for clause, end in bounded(_CLAUSE_BLOCK, text):
        if body := text[clause.end() : end].rstrip():
            question = f"{_book(title)}{clause.group(1)}是怎么规定的？"
            yield Candidate(question, Span(clause.end(), body), "clause")


def _questions(sentence: str) -> Iterator[tuple[str, str]]:
    """(question, rule) for one sentence, by the first template that fits."""
    if found := _CONDITION.match(sentence):
        yield f"什么情况下{found['subject']}{found['verdict']}？", "condition"
        if _ACT.search(found["subject"]):
            yield f"{found['condition']}的{found['subject']}，效力如何？", "condition"
    elif found := _DEFINITION.match(sentence):
        yield f"什么是{found['term']}？", "definition"
    elif found := _CASE.match(sentence):
        yield f"{found['condition']}的，会怎样处理？", "case"
    elif found := _AMOUNT.match(sentence):
        yield f"{found['subject']}是多少？", "amount"
    elif (found := _MUST.match(sentence)) and len(who := _WHO.split(found["subject"])[0]) > 1:
        yield f"对{who}有什么规定？", "duty"


def _book(title: str) -> str:
    return f"《{title.strip('《》')}》" if title else "文件"
