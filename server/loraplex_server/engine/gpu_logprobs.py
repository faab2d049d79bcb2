"""Log-probabilities of a step's tokens, computed on the GPU and copied to the host as a part of the step.

Reading device tensors when the step is over would wait for the next one, which is queued by then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loraplex_server.engine.host_copy import to_host
from loraplex_server.engine.messages import TokenLogprob
from loraplex_server.engine.pinned_reads import Bring

# At once: so few that topk goes about them as about a single one, whatever the vocabulary, and equal logits come in the
# same order beside other rows; and their copy takes a few megabytes, which no plan of the memory needs to count.
_MAX_ROWS = 8


@dataclass(frozen=True, slots=True)
class HostLogprobs:
    """Of rows that want equally many. The tensors are on the host, filled when the step is over."""

    rows: list[int]
    values: Tensor  # [rows, 1 + top] fp32: of the chosen token, then of the most likely
    top_ids: Tensor  # [rows, top] int64, best first

    def read(self, token_ids: Sequence[int]) -> Iterator[tuple[int, TokenLogprob]]:
        """Each row and what it wants; `token_ids` are what was chosen, for all rows of the step."""
        values: list[list[float]] = self.values.tolist()
        top_ids: list[list[int]] = self.top_ids.tolist()
        for row, (chosen, *top), ids in zip(self.rows, values, top_ids, strict=True):
            yield row, TokenLogprob(token_ids[row], chosen, list(zip(ids, top, strict=True)))


def take_logprobs(
    wanted: Sequence[int | None], logits: Tensor, chosen_ids: Tensor, bring: Bring
) -> list[HostLogprobs]:
    """Queue it all on the current stream, at temperature 1; waits for nothing.

    wanted      for each row how many of the most likely tokens; None: not even the chosen one
    logits      [>= rows, vocab] fp32, adjusted
    chosen_ids  [>= rows] int64
    """
    parts = list(_parts(wanted))
    if not parts:
        return []
    indices = torch.tensor([row for _, rows in parts for row in rows], dtype=torch.int32)
    on_device = bring(indices, logits.device).split([len(rows) for _, rows in parts])  # type: ignore[no-untyped-call]
    return [
        _take(rows, index, num_top, logits, chosen_ids)
        for (num_top, rows), index in zip(parts, on_device, strict=True)
    ]


def _parts(wanted: Sequence[int | None]) -> Iterator[tuple[int, list[int]]]:
    """Rows that want equally many, up to _MAX_ROWS together."""
    for num_top in sorted({number for number in wanted if number is not None}):
        rows = [row for row, number in enumerate(wanted) if number == num_top]
        for start in range(0, len(rows), _MAX_ROWS):
            yield num_top, rows[start : start + _MAX_ROWS]


def _take(rows: list[int], index: Tensor, num_top: int, logits: Tensor, chosen_ids: Tensor) -> HostLogprobs:
    """`index` holds `rows` on the device, int32."""
    taken = logits.index_select(0, index)
    # Negative where none could be chosen; nobody will read what is taken there.
    ids = chosen_ids.index_select(0, index).clamp_(min=0)
    chosen = taken.gather(1, ids.unsqueeze(1))
    top, top_ids = taken.topk(min(num_top, taken.shape[1]))
    values = torch.cat((chosen, top), dim=1) - torch.logsumexp(taken, dim=1, keepdim=True)
    return HostLogprobs(rows, to_host(values), to_host(top_ids))
