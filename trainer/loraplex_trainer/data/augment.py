"""More questions for the same answers, in the training part alone."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from loraplex_trainer.data.progress import Progress, silent
from loraplex_trainer.data.protected import keeps_protected
from loraplex_trainer.data.questions.written import Ask
from loraplex_trainer.data.row import Row
from loraplex_trainer.data.synonyms import read_lexicon, synonym_questions
from loraplex_trainer.data.text import has_cjk, is_mostly_cjk, match_key, normalized
from loraplex_trainer.recipe.sections import AugmentSection

_PARAPHRASE = {
    True: "请用另一种说法改写下面的问题，意思不变，保留所有数字、单位、名称和否定词。只写改写后的问题。\n\n"
    "问题：{question}\n\n改写（第{number}种）：",
    False: "Say the question below in other words. Keep its meaning and every number, unit, name and negation. "
    "Write only the new question.\n\nQuestion: {question}\n\nVersion {number}:",
}


@dataclass(frozen=True, slots=True)
class Augmented:
    """New rows; each names its parent. `refused` are paraphrases that lost something."""

    rows: list[Row]
    refused: int = 0


def augment(
    train: Sequence[Row],
    section: AugmentSection,
    folder: Path,
    seed: int,
    taken: Set[str],
    ask: Ask | None = None,
    progress: Progress = silent,
) -> Augmented:
    """Up to `factor` new questions for each row. `taken` are match keys of questions that must not appear."""
    if section.method == "none":
        return Augmented([])
    lexicon = (
        read_lexicon(folder / section.lexicon if section.lexicon else None)
        if section.method == "synonyms"
        else {}
    )
    keys = set(taken) | {match_key(row.question) for row in train}
    new_rows: list[Row] = []
    refused = 0
    for number, row in enumerate(train):
        progress("augmenting", number, len(train))
        if section.method == "synonyms":
            questions = synonym_questions(
                row.question, row.completion, lexicon, section.factor, f"{seed}/{row.id}"
            )
        else:
            assert ask is not None  # the build has seen to it
            questions, lost = _paraphrases(row.question, section.factor, ask)
            refused += lost
        for question in questions:
            key = match_key(question)
            if key not in keys:
                keys.add(key)
                new_rows.append(_rewritten(row, question))
    progress("augmenting", len(train), len(train))
    return Augmented(new_rows, refused)


def _rewritten(row: Row, question: str) -> Row:
    prompt = (*row.prompt[:-1], {**row.prompt[-1], "content": question})
    return replace(row, prompt=prompt, parent=row.id)  # type: ignore[arg-type]


def _paraphrases(question: str, count: int, ask: Ask) -> tuple[list[str], int]:
    """Usable ones, and how many were refused."""
    prompt = _PARAPHRASE[is_mostly_cjk(question)]
    found: dict[str, str] = {}
    for number in range(1, count + 1):
        reply = usable_paraphrase(ask(prompt.format(question=question, number=number)), question)
        if reply is not None:
            found.setdefault(match_key(reply), reply)
    return list(found.values()), count - len(found)


def usable_paraphrase(reply: str, question: str) -> str | None:
    """A paraphrase in a reply: one line of about the same length, in the same language, with all that is protected."""
    lines = [line.strip(' "“”*-') for line in normalized(reply).splitlines() if line.strip()]
    if not lines or match_key(lines[0]) == match_key(question):
        return None
    new = lines[0]
    if not 0.4 <= len(new) / len(question) <= 2.5 or has_cjk(new) != has_cjk(question) or "<|" in new:
        return None
    if question.rstrip().endswith(("?", "？")) and not new.endswith(("?", "？")):
        return None
    return new if keeps_protected(question, new) else None
