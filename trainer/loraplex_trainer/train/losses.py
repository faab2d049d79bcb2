"""Losses without dropout, of whole rows at once; only the columns that have a loss get logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from loraplex_trainer.train.tokens import IGNORED, TokenRow

_LOGIT_BYTES = 2**27  # of one batch's logits in 16 bits: little beside any base
_MAX_ROWS = 128
_VECTOR = 16  # floats of the widest registers


@dataclass(frozen=True, slots=True)
class RowLoss:
    """Of one row: summed loss (nats), supervised tokens, and how many of them were the likeliest."""

    loss_sum: float
    num_tokens: int
    num_right: int

    @property
    def mean(self) -> float:
        """Loss per token."""
        return self.loss_sum / self.num_tokens


@dataclass(frozen=True, slots=True)
class MeanLoss:
    """Over the tokens of many rows."""

    loss: float
    token_accuracy: float


@dataclass(frozen=True, slots=True)
class LossBatch:
    """Rows padded on the left, so that what has a loss stands in the last `num_columns` columns.

    input_ids, position_ids  [rows, length]
    attention_mask           [rows, length], or [rows, 1, length, length] and true where one may look
    labels                   [rows, num_columns], IGNORED where there is no loss
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    labels: Tensor

    @property
    def num_columns(self) -> int:
        """Columns with logits."""
        return self.labels.shape[1]

    def model_inputs(self) -> dict[str, Any]:
        """Arguments of the forward pass. The column before the first label predicts it."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
            "logits_to_keep": self.num_columns + 1,
            "use_cache": False,
        }


def collate(
    rows: Sequence[TokenRow], pad: int, device: torch.device, *, in_company: bool = False
) -> LossBatch:
    """One batch of the rows, in their order.

    in_company  each row's numbers shall not depend on which rows stand beside it: widths are those of whole vectors,
                so that a longer row adds zeros and no other order of adding, and every batch has a mask of its own,
                since attention without one is another kernel
    """
    length = max(len(row.input_ids) for row in rows)
    if in_company:
        length = -(-length // _VECTOR) * _VECTOR
    columns = max(len(row.labels) - _first_label(row) for row in rows)
    ids = torch.full((len(rows), length), pad)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    labels = torch.full((len(rows), columns), IGNORED)
    for index, row in enumerate(rows):
        size = len(row.input_ids)
        ids[index, length - size :] = torch.tensor(row.input_ids)
        mask[index, length - size :] = 1
        kept = row.labels[-columns:]
        labels[index, columns - len(kept) :] = torch.tensor(kept)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    seen = _causal(mask) if in_company else mask
    return LossBatch(ids.to(device), seen.to(device), positions.to(device), labels.to(device))


def row_losses(model: Any, rows: Sequence[TokenRow], pad: int, adapter: str | None = None) -> list[RowLoss]:
    """Each row's loss, in the order of `rows`. Sets the model to evaluation and leaves it there.

    adapter  of several; None: the active one
    """
    model.eval()
    device = next(model.parameters()).device
    found: dict[int, RowLoss] = {}
    with torch.no_grad():
        for indices in _batches(rows, model.config.vocab_size):
            batch = collate([rows[i] for i in indices], pad, device)
            named = {} if adapter is None else {"adapter_names": [adapter] * len(indices)}
            logits = model(**batch.model_inputs(), **named).logits[:, :-1]
            sums, right = _sums(logits, batch.labels)
            counts = (batch.labels != IGNORED).sum(1)
            table = torch.stack([sums.double(), counts.double(), right.double()]).tolist()
            for index, loss_sum, count, num_right in zip(indices, *table, strict=True):
                found[index] = RowLoss(loss_sum, int(count), int(num_right))
    return [found[index] for index in range(len(rows))]


def mean_loss(losses: Sequence[RowLoss]) -> MeanLoss:
    """Every token counts the same."""
    tokens = sum(row.num_tokens for row in losses)
    return MeanLoss(
        loss=sum(row.loss_sum for row in losses) / tokens,
        token_accuracy=sum(row.num_right for row in losses) / tokens,
    )


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Loss of each label [rows, columns], 0 where it is ignored. `logits` [rows, columns, vocabulary]."""
    loss = functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return loss.view_as(labels)


def _causal(mask: Tensor) -> Tensor:
    """[rows, 1, length, length] from [rows, length]. Padding sees itself, since a softmax of nothing is no number."""
    length = mask.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool).tril()
    return (earlier & mask.bool()[:, None, None, :]) | torch.eye(length, dtype=torch.bool)


def _sums(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Summed loss and number of right tokens of each row; a row at a time, since logits in fp32 are large."""
    sums, right = [], []
    for row_logits, row_labels in zip(logits, labels, strict=True):
        sums.append(token_losses(row_logits[None], row_labels[None]).sum())
        is_right = (row_logits.argmax(-1) == row_labels) & (row_labels != IGNORED)
        right.append(is_right.sum())
    return torch.stack(sums), torch.stack(right)


def _batches(rows: Sequence[TokenRow], vocabulary: int) -> Iterator[list[int]]:
    """Indices of rows of like length together, as many as the logits allow."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].input_ids), i))
    batch: list[int] = []
    columns = 0
    for index in order:
        wider = max(columns, len(rows[index].labels) - _first_label(rows[index]) + 1)
        if batch and (len(batch) == _MAX_ROWS or (len(batch) + 1) * wider * vocabulary * 2 > _LOGIT_BYTES):
            yield batch
            batch, wider = [], len(rows[index].labels) - _first_label(rows[index]) + 1
        batch.append(index)
        columns = wider
    if batch:
        yield batch


def _first_label(row: TokenRow) -> int:
    return next(i for i, label in enumerate(row.labels) if label != IGNORED)
