"""Bias, bans and penalties in the logits of a step, and what the penalties count, without a word from the host.

A table holds for every sequence with penalties a word per token of the vocabulary: twice the occurrences in the
completion, and one more if it has been seen at all, in the prompt or there. So a step can follow another one whose
tokens the host does not know yet.

Columns have as many entries as kernels take at a time, or a multiple; those at the end whose first number is negative
are padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loraplex_server.kernels.triton_runtime import Pointer, Scalar, constexpr, jit, require, tl

ENTRIES = 128
"""Entries of a column that a program takes."""
SEEN = 1
"""In a word of the table."""
OCCURRENCE = 2
"""Of the completion, in a word of the table."""
_TOKENS = 1024  # of a row's logits that a program takes


@jit
def _add_kernel(
    logits_ptr: Pointer,
    rows_ptr: Pointer,
    tokens_ptr: Pointer,
    values_ptr: Pointer,
    row_stride: Scalar,
    ENTRIES: constexpr,
) -> None:
    """Program (entries)."""
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    row = tl.load(rows_ptr + entry).to(tl.int64)
    at = logits_ptr + row * row_stride + tl.load(tokens_ptr + entry)
    value = tl.load(values_ptr + entry)
    # A ban is one whatever the logit: to add to infinity would give no number.
    x = tl.where(value == -float("inf"), value, tl.load(at, mask=row >= 0, other=0.0) + value)
    tl.store(at, x, mask=row >= 0)


@jit
def _write_kernel(
    table_ptr: Pointer,
    places_ptr: Pointer,
    tokens_ptr: Pointer,
    words_ptr: Pointer,
    VOCAB: constexpr,
    ENTRIES: constexpr,
) -> None:
    """Program (entries)."""
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    place = tl.load(places_ptr + entry).to(tl.int64)
    at = table_ptr + place * VOCAB + tl.load(tokens_ptr + entry)
    tl.store(at, tl.load(words_ptr + entry), mask=place >= 0)


@jit
def _penalize_kernel(
    logits_ptr: Pointer,
    table_ptr: Pointer,
    rows_ptr: Pointer,
    places_ptr: Pointer,
    repetition_ptr: Pointer,
    presence_ptr: Pointer,
    frequency_ptr: Pointer,
    row_stride: Scalar,
    VOCAB: constexpr,
    TOKENS: constexpr,
) -> None:
    """Program (tokens, entry)."""
    entry = tl.program_id(1)
    row = tl.load(rows_ptr + entry).to(tl.int64)
    place = tl.load(places_ptr + entry).to(tl.int64)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    word = tl.load(table_ptr + place * VOCAB + token, mask=token < VOCAB, other=0)
    at = logits_ptr + row * row_stride + token
    x = tl.load(at, mask=word != 0, other=0.0)
    repetition = tl.load(repetition_ptr + entry)
    x = tl.where(x > 0, x / repetition, x * repetition)
    times = word // 2
    x -= tl.where(times > 0, tl.load(presence_ptr + entry), 0.0)
    x -= tl.load(frequency_ptr + entry) * times.to(tl.float32)
    tl.store(at, x, mask=word != 0)


@jit
def _count_kernel(
    table_ptr: Pointer,
    rows_ptr: Pointer,
    places_ptr: Pointer,
    sampled_ptr: Pointer,
    VOCAB: constexpr,
    ENTRIES: constexpr,
) -> None:
    """Program (entries). No two of them have one place."""
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    row = tl.load(rows_ptr + entry)
    token = tl.load(sampled_ptr + row, mask=row >= 0, other=-1)
    at = table_ptr + tl.load(places_ptr + entry).to(tl.int64) * VOCAB + token
    tl.store(at, (tl.load(at, mask=token >= 0, other=0) | 1) + 2, mask=token >= 0)


def add_to_logits(logits: Tensor, rows: Tensor, tokens: Tensor, values: Tensor) -> None:
    """logits[row, token] += value, in place; no two entries have one row and token.

    logits  [n, vocab] fp32, rows contiguous
    rows, tokens  int32 [m]
    values  fp32 [m]; -inf bans a token
    """
    _check_columns(rows, tokens, values)
    _check_logits(logits)
    _add_kernel[(len(rows) // ENTRIES,)](logits, rows, tokens, values, logits.stride(0), ENTRIES=ENTRIES)


def write_words(table: Tensor, places: Tensor, tokens: Tensor, words: Tensor) -> None:
    """table[place, token] = word.

    table  [places, vocab] int32, contiguous
    places, tokens, words  int32 [m]
    """
    _check_columns(places, tokens, words)
    _check_table(table)
    _write_kernel[(len(places) // ENTRIES,)](
        table, places, tokens, words, VOCAB=table.shape[1], ENTRIES=ENTRIES
    )


def penalize(
    logits: Tensor,
    table: Tensor,
    rows: Tensor,
    places: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
    num_rows: int,
) -> None:
    """Change the logits of tokens seen so far, in place.

    Repetition after CTRL (Keskar et al., 2019): positive logits shrink and negative ones grow, for tokens of
    prompt and completion. Presence costs a constant and frequency one per occurrence, for tokens of the
    completion.

    logits  [n, vocab] fp32, rows contiguous
    table   [places, vocab] int32, contiguous
    rows, places  int32 [m]: of `logits`, and of `table`; no two entries have one row
    repetition, presence, frequency  fp32 [m]
    num_rows  entries in front of the padding
    """
    _check_columns(rows, places, repetition, presence, frequency)
    _check_logits(logits)
    _check_table(table)
    vocab_size = table.shape[1]
    require(logits.shape[1] == vocab_size, f"{logits.shape[1]} logits do not fit {vocab_size} words")
    require(num_rows <= len(rows), f"{len(rows)} entries are not {num_rows} rows")
    _penalize_kernel[(-(-vocab_size // _TOKENS), num_rows)](
        logits,
        table,
        rows,
        places,
        repetition,
        presence,
        frequency,
        logits.stride(0),
        VOCAB=vocab_size,
        TOKENS=_TOKENS,
    )


def count_sampled(table: Tensor, rows: Tensor, places: Tensor, sampled: Tensor) -> None:
    """One occurrence more of sampled[row] at each place; no two entries have one place.

    table    [places, vocab] int32, contiguous
    rows, places  int32 [m]
    sampled  int64 [> every row]; a negative token is none
    """
    _check_columns(rows, places)
    _check_table(table)
    require(sampled.dtype == torch.int64, "tokens must be int64")
    _count_kernel[(len(rows) // ENTRIES,)](
        table, rows, places, sampled, VOCAB=table.shape[1], ENTRIES=ENTRIES
    )


def _check_columns(first: Tensor, *others: Tensor) -> None:
    require(len(first) % ENTRIES == 0, f"{len(first)} entries are no multiple of {ENTRIES}")
    require(all(len(column) == len(first) for column in others), "columns differ in length")


def _check_logits(logits: Tensor) -> None:
    require(
        logits.dtype == torch.float32 and logits.stride(1) == 1, "logits must be fp32 with contiguous rows"
    )


def _check_table(table: Tensor) -> None:
    require(table.dtype == torch.int32 and table.is_contiguous(), "the table must be int32 and contiguous")
