"""Looks at what will really be trained on, before anything is: template, supervised text, EOS, lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from loraplex_server.base.fingerprint import template_hash
from loraplex_server.model.checkpoint import Checkpoint
from loraplex_trainer.data.row import Row
from loraplex_trainer.errors import TrainingDataError
from loraplex_trainer.train.tokens import IGNORED, TokenRow, render

_SHOWN_ROWS = 3
_UNTRAINED_NORM = 0.3  # of the median row; training moves a token's embedding far beyond its first values
_EMBEDDINGS = ("lm_head.weight", "model.embed_tokens.weight")


@dataclass(frozen=True, slots=True)
class LengthReport:
    """Tokens of the rows, prompt and completion."""

    shortest: int
    median: int
    longest: int
    max_length: int
    supervised_share: float  # of all tokens


@dataclass(frozen=True, slots=True)
class Preflight:
    """What the first steps will see."""

    template_sha256: str
    num_rows: int
    supervised_texts: tuple[str, ...]  # of the first rows, as the tokenizer decodes what has a loss
    eos_supervised_share: float
    lengths: LengthReport
    injected_system: str | None  # what the template puts where there is no system turn, if that happens here
    warnings: tuple[str, ...]


def preflight(
    rows: Sequence[Row],
    tokenizer: Any,
    system: str | None,
    max_length: int,
    base_folder: Path,
) -> tuple[Preflight, list[TokenRow]]:
    """The report and the token rows.

    Raises TrainingDataError, with the ids of the rows, when one has no supervised token, does not end in a
    supervised EOS, or is longer than `max_length` tokens: nothing is ever cut.
    """
    if not rows:
        raise TrainingDataError("there are no rows to train on")
    tokens = render(rows, tokenizer, system)
    eos = tokenizer.eos_token_id
    _refuse("have no supervised token", rows, [not row.num_supervised for row in tokens])
    _refuse("do not end in a supervised EOS", rows, [row.labels[-1] != eos for row in tokens])
    _refuse(
        f"are longer than data.max_length, {max_length} tokens",
        rows,
        [len(row.input_ids) > max_length for row in tokens],
    )
    injected = injected_system(tokenizer) if system is None else None
    report = Preflight(
        template_sha256=template_hash(base_folder),
        num_rows=len(rows),
        supervised_texts=tuple(supervised_text(row, tokenizer) for row in tokens[:_SHOWN_ROWS]),
        eos_supervised_share=sum(row.labels[-1] == eos for row in tokens) / len(tokens),
        lengths=_lengths(tokens, max_length),
        injected_system=injected,
        warnings=tuple(_warnings(injected, base_folder, eos)),
    )
    return report, tokens


def supervised_text(row: TokenRow, tokenizer: Any) -> str:
    """What has a loss, as text with its special tokens."""
    text: str = tokenizer.decode([label for label in row.labels if label != IGNORED])
    return text


def injected_system(tokenizer: Any) -> str | None:
    """What the chat template puts before a first user turn that no system turn precedes."""
    user = {"role": "user", "content": "QQQQ"}
    earlier = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]
    alone = tokenizer.apply_chat_template([user], tokenize=False).partition("QQQQ")[0]
    later = tokenizer.apply_chat_template([*earlier, user], tokenize=False).partition("QQQQ")[0]
    injected = alone[: len(alone) - _shared_ending(alone, later)]
    injected = injected.removeprefix(tokenizer.bos_token or "")
    return injected if any(letter.isalpha() for letter in injected) else None


def _shared_ending(first: str, second: str) -> int:
    """How many last characters two texts share."""
    count = 0
    while count < min(len(first), len(second)) and first[-count - 1] == second[-count - 1]:
        count += 1
    return count


def has_untrained_eos(base_folder: Path, eos_token_id: int) -> bool:
    """Whether EOS's output embedding still looks like its first random values, as on many plain base models."""
    checkpoint = Checkpoint(base_folder)
    name = next((name for name in _EMBEDDINGS if name in checkpoint.names()), None)
    if name is None:
        return False
    norms = checkpoint.tensor(name).float().norm(dim=1)
    return bool(norms[eos_token_id] < _UNTRAINED_NORM * norms.median())


def _refuse(what: str, rows: Sequence[Row], is_at_fault: list[bool]) -> None:
    faults = [row for row, fault in zip(rows, is_at_fault, strict=True) if fault]
    if faults:
        shown = ", ".join(f"{row.id} ({row.origin})" for row in faults[:10])
        raise TrainingDataError(f"{len(faults)} rows {what}: {shown}")


def _lengths(tokens: list[TokenRow], max_length: int) -> LengthReport:
    lengths = [len(row.input_ids) for row in tokens]
    return LengthReport(
        shortest=min(lengths),
        median=int(median(lengths)),
        longest=max(lengths),
        max_length=max_length,
        supervised_share=sum(row.num_supervised for row in tokens) / sum(lengths),
    )


def _warnings(injected: str | None, base_folder: Path, eos_token_id: int) -> list[str]:
    warnings = []
    if injected is not None:
        warnings.append(
            f"the chat template puts in a system turn of its own ({injected.strip()!r}), and the adapter learns "
            "under it; set `system` if that is not meant"
        )
    if has_untrained_eos(base_folder, eos_token_id):
        warnings.append(
            "the base's EOS embedding looks untrained, so answers may never end; use the instruct variant of the base"
        )
    return warnings
