"""Packed rows see only themselves: the reason why packing may be offered at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

ROWS = [[5, 6, 7, 8], [9, 10, 11], [12, 13, 14, 15, 16]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_get_the_logits_that_they_get_alone(tiny_base: Path, attention: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        tiny_base, attn_implementation=attention, local_files_only=True
    ).eval()
    ids = torch.tensor([[token for row in ROWS for token in row]])
    positions = torch.tensor([[position for row in ROWS for position in range(len(row))]])
    with torch.no_grad():
        packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
        alone = torch.cat([model(input_ids=torch.tensor([row])).logits[0] for row in ROWS])
        unmarked = model(input_ids=ids, use_cache=False).logits[0]

    assert torch.allclose(packed, alone, atol=1e-5)
    assert not torch.allclose(unmarked, alone, atol=1e-3)  # the positions are what keeps rows apart
