"""Bias, penalties and bans on the device are those of the engine's sampler in plain torch, step after step."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from loraplex_server.engine.gpu_logit_changes import GpuLogitChanges
from loraplex_server.engine.messages import SamplingParams
from loraplex_server.engine.pinned_reads import PinnedReads
from loraplex_server.engine.sampler import Sampler
from loraplex_server.engine.scheduled_batch import ScheduledSequence
from loraplex_server.engine.sequence import Sequence
from loraplex_server.kernels.logit_changes import add_to_logits, penalize
from tests.unit.engine.simulation import add_command

EOS = 0
CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"repetition_penalty": 1.3},
    {"presence_penalty": 0.5, "frequency_penalty": -0.2},
    {"logit_bias": {7: 2.5, 39: -4.0, EOS: 9.0}, "min_tokens": 3, "stop_token_ids": (11, 7)},
    {"repetition_penalty": 0.7, "frequency_penalty": 0.4, "logit_bias": {3: -0.5}, "min_tokens": 2},
    {"min_tokens": 9, "ignore_eos": True},  # nothing is left to ban
    {"logit_bias": {5: 1.0}},
)


def running(sequence_id: int, prompt: list[int], **sampling: Any) -> Sequence:
    command = add_command(sequence_id, prompt, sampling=SamplingParams(**sampling))
    sequence = Sequence.of(command, order=sequence_id)
    sequence.block_table = [0]
    return sequence


def row_of(sequence: Sequence) -> ScheduledSequence:
    """As a step that samples its next token has it."""
    stop = sequence.num_tokens
    return ScheduledSequence(sequence, stop - 1, 1, True, sequence.num_output_tokens, 0)


def changes_of(places: int, vocab_size: int, device: torch.device) -> GpuLogitChanges:
    table = torch.full((places, vocab_size), 99, dtype=torch.int32, device=device)  # left by another sequence
    return GpuLogitChanges(table, [EOS], PinnedReads())


def apply_to_both(
    changes: GpuLogitChanges, sequences: list[Sequence], logits: Tensor, rows: list[ScheduledSequence]
) -> tuple[Tensor, Tensor]:
    """What the device makes of logits, and the sampler."""
    expected = logits.cpu().clone()
    for row, sequence in zip(expected, sequences, strict=True):
        Sampler([EOS]).adjust(row, sequence, len(sequence.output_token_ids))
    changes.apply(logits, rows)
    return logits.cpu(), expected


def check_steps(device: torch.device, vocab_size: int, num_prompt: int, steps: int) -> None:
    """Sequences begin, go on while their newest token is pending, rest, and end; others take their places."""
    generator = random.Random(1)
    tokens = range(vocab_size)
    changes = changes_of(len(CHANGES), vocab_size, device)
    alive: list[Sequence] = []
    for step in range(steps):
        if step % 3 == 0:
            for sequence in alive[:2]:
                sequence.block_table = []
            alive = alive[2:]
        while len(alive) < len(CHANGES):
            number = len(CHANGES) * step + len(alive)
            prompt = generator.choices(tokens, k=generator.randint(1, num_prompt))
            alive.append(running(number, prompt, **generator.choice(CHANGES)))
        sequences = generator.sample(alive, generator.randint(1, len(alive)))
        rows = [row_of(sequence) for sequence in sequences]
        logits = torch.randn(len(sequences), vocab_size).to(device)

        found, expected = apply_to_both(changes, sequences, logits, rows)

        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6), step
        sampled = generator.choices(tokens, k=len(sequences) + 3)
        changes.count(torch.tensor(sampled, device=device))
        for sequence, token in zip(sequences, sampled, strict=False):
            sequence.output_token_ids.append(token)


def test_changes_are_those_of_the_sampler_step_after_step(device: torch.device) -> None:
    check_steps(device, vocab_size=40, num_prompt=6, steps=12)


@pytest.mark.gpu
def test_changes_of_a_real_vocabulary_and_long_prompts_are_those_of_the_sampler(device: torch.device) -> None:
    """More steps than buffers, of many sizes."""
    check_steps(device, vocab_size=128256, num_prompt=6000, steps=60)


def test_a_sequence_goes_on_while_its_newest_token_is_known_to_the_device_alone(device: torch.device) -> None:
    changes = changes_of(1, 40, device)
    sequence = running(1, [4, 5], presence_penalty=1.0, frequency_penalty=0.5)
    changes.apply(torch.zeros(1, 40, device=device), [row_of(sequence)])
    changes.count(torch.tensor([6], device=device))
    sequence.num_pending_tokens = 1
    logits = torch.zeros(1, 40, device=device)

    changes.apply(logits, [row_of(sequence)])

    assert logits.nonzero().tolist() == [[0, 6]]
    assert logits[0, 6].item() == -1.5


def test_a_preempted_sequence_whose_place_was_taken_is_counted_anew(device: torch.device) -> None:
    changes = changes_of(1, 40, device)
    first = running(1, [4], presence_penalty=1.0)
    second = running(2, [9], presence_penalty=2.0)
    for sequence, token in ((first, 7), (second, 8)):
        changes.apply(torch.zeros(1, 40, device=device), [row_of(sequence)])
        changes.count(torch.tensor([token], device=device))
        sequence.output_token_ids.append(token)
        sequence.block_table = []
    first.block_table = [3]
    logits = torch.zeros(1, 40, device=device)

    changes.apply(logits, [row_of(first)])

    assert logits.nonzero().tolist() == [[0, 7]]


def test_a_ban_holds_whatever_the_logit_is(device: torch.device) -> None:
    sequence = running(1, [4], min_tokens=1, stop_token_ids=(2, 3), logit_bias={3: 5.0})
    logits = torch.full((1, 40), torch.inf, device=device)

    changes_of(1, 40, device).apply(logits, [row_of(sequence)])

    assert (logits == -torch.inf).nonzero().tolist() == [[0, EOS], [0, 2], [0, 3]]


def test_where_no_token_was_chosen_none_is_counted(device: torch.device) -> None:
    """It may have been written beyond the row of its sequence."""
    changes = changes_of(2, 40, device)
    sequences = [running(number, [4], presence_penalty=1.0) for number in (1, 2)]
    rows = [row_of(sequence) for sequence in sequences]
    changes.apply(torch.zeros(2, 40, device=device), rows)

    changes.count(torch.tensor([5, -1], device=device))

    logits = torch.zeros(2, 40, device=device)
    changes.apply(logits, rows)
    assert logits.nonzero().tolist() == [[0, 5]]


def test_what_is_compiled_at_the_start_leaves_nothing_behind(device: torch.device) -> None:
    changes = changes_of(2, 40, device)
    changes.warm_up(torch.zeros(3, 40, device=device), torch.zeros(2, dtype=torch.int64, device=device))
    sequences = [running(1, [4], presence_penalty=1.0), running(2, [0], repetition_penalty=2.0)]

    found, expected = apply_to_both(
        changes, sequences, torch.ones(2, 40, device=device), [row_of(sequence) for sequence in sequences]
    )

    assert torch.equal(found, expected)


def test_columns_and_tables_that_do_not_fit_are_refused(device: torch.device) -> None:
    column = torch.zeros(128, dtype=torch.int32, device=device)
    logits = torch.zeros(1, 40, device=device)
    with pytest.raises(ValueError, match="no multiple of 128"):
        add_to_logits(logits, column[:5], column[:5], column[:5])
    with pytest.raises(ValueError, match="differ in length"):
        add_to_logits(logits, column, column, column.repeat(2))
    table = torch.zeros(1, 41, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="do not fit"):
        penalize(logits, table, column, column, column, column, column, num_rows=1)
    with pytest.raises(ValueError, match="not 129 rows"):
        penalize(logits, table[:, :40].contiguous(), column, column, column, column, column, num_rows=129)
