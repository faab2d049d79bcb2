"""Conversations to token ids, through the base's own chat template; the loss covers the completion only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from loraplex_trainer.data.conversation import BadRecordError, Rejected
from loraplex_trainer.data.readers.json_files import json_records
from loraplex_trainer.data.row import Row
from loraplex_trainer.errors import TrainingDataError
from loraplex_trainer.judge.graders import EvalRow, fault_of

IGNORED = -100  # label of a token without loss
_EVAL_KEYS = frozenset({"id", "system", "question", "answer", "grader", "expected"})


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One training row: `labels` equals `input_ids` on the completion and its EOS, IGNORED before."""

    input_ids: list[int]
    labels: list[int]

    @property
    def num_supervised(self) -> int:
        """Tokens with loss."""
        return sum(label != IGNORED for label in self.labels)


def prompt_messages(row: Row, system: str | None) -> list[dict[str, str]]:
    """The conversation that is asked, with the recipe's system turn first; None: no system turn.

    Without one, a template may put in a turn of its own, in training as in serving; `preflight` tells.
    """
    turns = [{"role": str(m["role"]), "content": m["content"]} for m in row.prompt if m["role"] != "system"]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def render(rows: Sequence[Row], tokenizer: Any, system: str | None) -> list[TokenRow]:
    """Token rows in the order of `rows`. Raises TrainingDataError with the ids of all rows at fault."""
    rendered, faults = [], []
    for row in rows:
        try:
            answer = {"role": "assistant", "content": row.completion}
            rendered.append(tokenize(tokenizer, prompt_messages(row, system), answer))
        except TrainingDataError as error:
            faults.append((row, error))
    if faults:
        first, reason = faults[0]
        ids = ", ".join(row.id for row, _ in faults[:10])
        raise TrainingDataError(
            f"{len(faults)} rows cannot be trained on ({ids}); the first, {first.origin}: {reason}"
        )
    return rendered


def tokenize(tokenizer: Any, prompt: list[dict[str, str]], completion: dict[str, str]) -> TokenRow:
    """One conversation; ends with EOS, which is trained, and without what the template puts after it."""
    prompt_ids = prompt_token_ids(tokenizer, prompt)
    text = tokenizer.apply_chat_template([*prompt, completion], tokenize=False)
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    if whole[: len(prompt_ids)] != prompt_ids:
        raise TrainingDataError("the chat template renders a prompt differently once it is answered")
    bos = tokenizer.bos_token_id
    if bos is not None and whole[:2] == [bos, bos]:
        raise TrainingDataError("the chat template begins with two BOS tokens")
    end = len(whole)
    while end > len(prompt_ids) and whole[end - 1] != tokenizer.eos_token_id:
        end -= 1
    if end <= len(prompt_ids) + 1:
        raise TrainingDataError("the chat template does not end a completion with EOS, or it is empty")
    return TokenRow(whole[:end], [IGNORED] * len(prompt_ids) + whole[len(prompt_ids) : end])


def prompt_token_ids(tokenizer: Any, prompt: list[dict[str, str]]) -> list[int]:
    """What the server feeds the model for these messages."""
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def padding_id(tokenizer: Any) -> int:
    """Id that fills short rows; it is masked wherever it stands."""
    pad = tokenizer.pad_token_id
    return int(pad if pad is not None else tokenizer.eos_token_id)


def question_messages(row: EvalRow) -> list[dict[str, str]]:
    """The prompt of a held-out question."""
    question = {"role": "user", "content": row["question"]}
    return [question] if row["system"] is None else [{"role": "system", "content": row["system"]}, question]


def read_eval_rows(path: Path) -> list[EvalRow]:
    """Read held-out questions. Raises TrainingDataError naming the line at fault."""
    try:
        return [_eval_row(item) for item in json_records(path)]
    except BadRecordError as error:
        raise TrainingDataError(f"{path.name}: {error}") from error


def _eval_row(item: tuple[str, Any] | Rejected) -> EvalRow:
    if isinstance(item, Rejected):
        raise TrainingDataError(f"{item.origin}: {item.reason}")
    origin, row = item
    if not isinstance(row, dict):
        raise TrainingDataError(f"{origin}: not an object")
    missing = _EVAL_KEYS - row.keys()
    if missing:
        raise TrainingDataError(f"{origin}: lacks {', '.join(sorted(missing))}")
    if not isinstance(row["question"], str) or not isinstance(row["system"], str | None):
        raise TrainingDataError(f"{origin}: question is not a text, or system neither a text nor null")
    fault = fault_of(row)
    if fault is not None:
        raise TrainingDataError(f"{origin}: {fault}")
    return cast(EvalRow, row)
