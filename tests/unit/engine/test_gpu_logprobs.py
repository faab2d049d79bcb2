"""Log-probabilities of all rows of a step together are those of each row alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from loraplex_server.engine.gpu_logprobs import take_logprobs
from loraplex_server.engine.sampler import _logprob

VOCAB_SIZE = 50
WANTED = [3, None, 0, 3, 20, None, *[5] * 19, 0]  # more of one number than go together


def random_logits() -> Tensor:
    """Rounded, so that many are equal, some of them banned; with rows behind those that are sampled."""
    logits = torch.randn(len(WANTED) + 6, VOCAB_SIZE, generator=torch.Generator().manual_seed(3))
    logits = (logits * 4).round() / 4
    logits[:, ::7] = -torch.inf
    return logits


def test_each_row_gets_what_the_reference_computes_for_it_alone() -> None:
    logits = random_logits()
    chosen = logits.argmax(dim=1)
    chosen[3] = 8  # sampled
    brought: list[list[int]] = []

    def bring(words: Tensor, device: torch.device) -> Tensor:
        brought.append(words.tolist())
        return words

    parts = take_logprobs(WANTED, logits, chosen, bring)
    ids = chosen.tolist()
    found = dict(entry for part in parts for entry in part.read(ids))

    assert set(found) == {row for row, number in enumerate(WANTED) if number is not None}
    for row, logprob in found.items():
        expected = _logprob(logits[row], ids[row], WANTED[row])
        assert expected is not None
        assert logprob.token_id == expected.token_id
        assert logprob.logprob == pytest.approx(expected.logprob, abs=1e-6)
        assert [token for token, _ in logprob.top] == [token for token, _ in expected.top]
        assert [value for _, value in logprob.top] == pytest.approx([v for _, v in expected.top], abs=1e-6)
    assert len(brought) == 1, "the rows did not come at once"
    assert max(len(part.rows) for part in parts) == 8


def test_a_step_that_nobody_wants_any_of_does_nothing() -> None:
    def bring(words: Tensor, device: torch.device) -> Tensor:
        raise AssertionError("rows for nobody")

    assert (
        take_logprobs([None, None], torch.zeros(2, VOCAB_SIZE), torch.zeros(2, dtype=torch.int64), bring)
        == []
    )
