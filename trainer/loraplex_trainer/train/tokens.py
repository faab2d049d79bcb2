"""Conversations to token ids, through the base's own chat template; the loss covers the completion only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from loraplex_trainer.errors import TrainingDataError
from loraplex_trainer.judge.graders import EvalRow

IGNORED = -100  # label of a token without loss
_EVAL_KEYS = frozenset({"id", "system", "question", "answer", "grader", "expected"})


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One training row: `labels` equals `input_ids` on the completion and its EOS, IGNORED before."""

    input_ids: list[int]
    labels: list[int]


def read_training_rows(path: Path, tokenizer: Any, system: str, max_length: int) -> list[TokenRow]:
    """Tokenize a file of prompt/completion rows. Raises TrainingDataError naming the line at fault."""
    rows = []
    for number, row in _json_lines(path):
        where = f"{path.name}, line {number}"
        prompt, completion = row.get("prompt"), row.get("completion")
        if not _is_conversation(prompt) or not _is_conversation(completion) or len(completion) != 1:
            raise TrainingDataError(f"{where}: needs `prompt` messages and one `completion` message")
        if prompt[0] != {"role": "system", "content": system}:
            raise TrainingDataError(f"{where}: the prompt must begin with the recipe's system message")
        tokens = tokenize(tokenizer, prompt, completion[0])
        if len(tokens.input_ids) > max_length:
            raise TrainingDataError(f"{where}: {len(tokens.input_ids)} tokens are more than {max_length}")
        rows.append(tokens)
    if not rows:
        raise TrainingDataError(f"{path.name} has no rows")
    return rows


def tokenize(tokenizer: Any, prompt: list[dict[str, str]], completion: dict[str, str]) -> TokenRow:
    """One conversation; ends with EOS, which is trained, and without what the template puts after it."""
    prompt_ids = prompt_token_ids(tokenizer, prompt)
    text = tokenizer.apply_chat_template([*prompt, completion], tokenize=False)
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    if whole[: len(prompt_ids)] != prompt_ids:
        raise TrainingDataError("the chat template renders a prompt differently once it is answered")
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


def question_messages(row: EvalRow) -> list[dict[str, str]]:
    """The prompt of a held-out question."""
    return [{"role": "system", "content": row["system"]}, {"role": "user", "content": row["question"]}]


def read_eval_rows(path: Path) -> list[EvalRow]:
    """Read held-out questions. Raises TrainingDataError naming the line at fault."""
    rows: list[EvalRow] = []
    for number, row in _json_lines(path):
        missing = _EVAL_KEYS - row.keys()
        if missing:
            raise TrainingDataError(f"{path.name}, line {number}: lacks {', '.join(sorted(missing))}")
        rows.append(row)  # type: ignore[arg-type]  # its keys were just checked
    return rows


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingDataError(f"{path.name} cannot be read as text") from error
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise TrainingDataError(f"{path.name}, line {number}: not JSON") from error
        if not isinstance(row, dict):
            raise TrainingDataError(f"{path.name}, line {number}: not an object")
        yield number, row


def _is_conversation(value: Any) -> TypeGuard[list[dict[str, str]]]:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and isinstance(m.get("content"), str) and "role" in m for m in value)
    )
