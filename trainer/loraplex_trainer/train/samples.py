"""Typical questions, answered greedily after every epoch, by the base and by the adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from loraplex_trainer.data.row import Row
from loraplex_trainer.train.answers import overlap, problems
from loraplex_trainer.train.tokens import padding_id, prompt_messages, prompt_token_ids

_RIGHT_OVERLAP = 0.9  # of an answer without a grader


@dataclass(frozen=True, slots=True)
class Answer:
    """What one model said to one question."""

    text: str
    has_ended: bool  # with EOS, before the limit


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of samples.jsonl."""

    stage: str
    epoch: float
    row: str  # id
    question: str
    reference: str
    base: str
    adapter: str
    has_ended: bool
    problems: tuple[str, ...]
    is_right: bool

    def document(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def typical_rows(rows: Sequence[Row], count: int) -> list[Row]:
    """Rows spread evenly over tiers and over lengths of the answer; always the same for the same rows."""
    order = sorted(rows, key=lambda row: (row.tier or 0, len(row.completion), row.id))
    count = min(count, len(order))
    return [order[(2 * i + 1) * len(order) // (2 * count)] for i in range(count)]


def answer_greedily(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    adapter: str | None = None,
) -> list[Answer]:
    """Answers to all prompts in one batch. Sets the model to evaluation and leaves it there.

    adapter  of several; None: the active one
    """
    model.eval()
    device = next(model.parameters()).device
    pad, eos = padding_id(tokenizer), tokenizer.eos_token_id
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor(
        [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device
    )
    named = {} if adapter is None else {"adapter_names": [adapter] * len(prompts)}
    with torch.no_grad():
        output = model.generate(
            **named,
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            pad_token_id=pad,
            eos_token_id=eos,
        )
    answers = []
    for row in output[:, longest:].tolist():
        text = tokenizer.decode(row, skip_special_tokens=True).strip()
        answers.append(Answer(text, eos in row))
    return answers


class Sampler:
    """The typical questions of a stage; the base is asked once."""

    def __init__(self, rows: Sequence[Row], tokenizer: Any, system: str | None, max_new_tokens: int) -> None:
        self.rows = rows
        self._tokenizer = tokenizer
        self._max_new_tokens = max_new_tokens
        self._prompts = [prompt_token_ids(tokenizer, prompt_messages(row, system)) for row in rows]
        self._base: list[Answer] | None = None

    def sample(self, model: Any, stage: str, epoch: float, adapter: str | None = None) -> list[Sample]:
        """Ask the adapter, and the first time the base under it.

        adapter  of several; None: the active one
        """
        if self._base is None:
            with model.disable_adapter():
                self._base = answer_greedily(model, self._tokenizer, self._prompts, self._max_new_tokens)
        answers = answer_greedily(model, self._tokenizer, self._prompts, self._max_new_tokens, adapter)
        return [
            _sample(stage, epoch, row, base, answer)
            for row, base, answer in zip(self.rows, self._base, answers, strict=True)
        ]


def _sample(stage: str, epoch: float, row: Row, base: Answer, answer: Answer) -> Sample:
    return Sample(
        stage=stage,
        epoch=epoch,
        row=row.id,
        question=row.question,
        reference=row.completion,
        base=base.text,
        adapter=answer.text,
        has_ended=answer.has_ended,
        problems=problems(row.question, answer.text, row.completion, answer.has_ended),
        is_right=_is_right(row, answer.text),
    )


def _is_right(row: Row, answer: str) -> bool:
    if row.grader is None:
        return overlap(answer, row.completion) >= _RIGHT_OVERLAP
    from loraplex_trainer.judge.graders import grade

    graded: Any = {"question": row.question, "answer": row.completion, **row.grader}
    return bool(grade(graded, answer))


@dataclass(slots=True)
class BadStreak:
    """Epochs in a row whose share of bad answers is above `limit`."""

    limit: float
    epochs: int = 0

    def see(self, samples: Sequence[Sample]) -> bool:
        """Take in one epoch's answers; whether to pause."""
        bad = sum(bool(sample.problems) for sample in samples)
        self.epochs = self.epochs + 1 if bad > self.limit * len(samples) else 0
        return self.epochs >= 2
