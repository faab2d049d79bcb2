"""How many tokens each row has once the base's chat template renders it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loraplex_trainer.data.progress import Progress, silent
from loraplex_trainer.data.row import Row
from loraplex_trainer.errors import TrainingDataError

_BOUNDS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


@dataclass(frozen=True, slots=True)
class RowLength:
    """Tokens of a row, and how many of them are trained."""

    tokens: int
    supervised: int


def measure(
    rows: Sequence[Row], tokenizer: Any, system: str | None, progress: Progress = silent
) -> list[RowLength]:
    """Length of each row, in their order. Raises TrainingDataError where the template cannot render one."""
    lengths = []
    for number, row in enumerate(rows):
        if number % 200 == 0:
            progress("counting tokens", number, len(rows))
        lengths.append(_length(row, tokenizer, system))
    if rows:
        progress("counting tokens", len(rows), len(rows))
    return lengths


def messages_of(row: Row, system: str | None) -> list[dict[str, str]]:
    """The prompt that is rendered: the recipe's system turn, then the row's."""
    start = [{"role": "system", "content": system}] if system is not None else []
    return [*start, *({"role": m["role"], "content": m["content"]} for m in row.prompt)]


def _length(row: Row, tokenizer: Any, system: str | None) -> RowLength:
    prompt = messages_of(row, system)
    try:
        asked = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        answered = tokenizer.apply_chat_template(
            [*prompt, {"role": "assistant", "content": row.completion}], tokenize=False
        )
    except Exception as error:  # whatever a template raises
        raise TrainingDataError(
            f"{row.origin}: the base's chat template cannot render this conversation"
        ) from error
    num_prompt = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
    num_all = len(tokenizer(answered, add_special_tokens=False)["input_ids"])
    return RowLength(num_all, max(0, num_all - num_prompt))


def histogram(lengths: Sequence[RowLength]) -> dict[str, int]:
    """Rows by tokens: up to 32, up to 64, …"""
    counts = dict.fromkeys(_BOUNDS, 0)
    for length in lengths:
        counts[next((bound for bound in _BOUNDS if length.tokens <= bound), _BOUNDS[-1])] += 1
    last = max((bound for bound, count in counts.items() if count), default=0)
    return {f"≤{bound}": count for bound, count in counts.items() if bound <= last}
