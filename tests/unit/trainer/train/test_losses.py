from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loraplex_trainer.base_model import load_for_training, load_tokenizer
from loraplex_trainer.train import losses
from loraplex_trainer.train.losses import RowLoss, mean_loss, row_losses
from loraplex_trainer.train.tokens import padding_id, render

from ..conftest import SYSTEM
from .conftest import row, tiny_plan

ROWS = [row(f"What is {n}?", "Red. " * n) for n in (3, 1, 7, 2)]


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Any:
    return load_for_training(tiny_base, tiny_plan())


def test_a_rows_loss_is_the_models_own(model: Any, tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    tokens = render(ROWS, tokenizer, SYSTEM)
    measured = row_losses(model, tokens, padding_id(tokenizer))

    for one, found in zip(tokens, measured, strict=True):
        with torch.no_grad():
            ids, labels = torch.tensor([one.input_ids]), torch.tensor([one.labels])
            expected = float(model(input_ids=ids, labels=labels).loss)
        assert found.mean == pytest.approx(expected, rel=1e-5)
        assert found.num_tokens == one.num_supervised


def test_losses_do_not_depend_on_the_batch(
    model: Any, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(tiny_base)
    tokens = render(ROWS, tokenizer, SYSTEM)
    together = row_losses(model, tokens, padding_id(tokenizer))
    monkeypatch.setattr(losses, "_MAX_ROWS", 1)
    alone = row_losses(model, tokens, padding_id(tokenizer))

    assert [one.mean for one in together] == pytest.approx([one.mean for one in alone], rel=1e-5)


def test_the_mean_is_over_tokens_and_not_over_rows() -> None:
    mean = mean_loss([RowLoss(1.0, 1, 1), RowLoss(9.0, 9, 0)])

    assert mean.loss == 1.0
    assert mean.token_accuracy == 0.1
