"""What transformers and PEFT make of the same weights: the naive way, everything computed anew for each token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

WeightRounding = dict[str, Tensor]
"""Parameter name of the transformers model -> the weight to put in its place."""


@dataclass(frozen=True)
class GreedyCompletion:
    """Each token is the most likely after all before it."""

    tokens: list[int]
    smallest_lead: float  # of the best logit over the second best: below it, rounding may decide


class PeftReference:
    """Base and adapters in fp32, with `weights` in place of the base's own if given."""

    def __init__(self, base: Path, folders: dict[str, Path], weights: WeightRounding | None = None) -> None:
        self._models: dict[str | None, Any] = {None: _base_model(base, weights)}
        for name, folder in folders.items():
            self._models[name] = PeftModel.from_pretrained(_base_model(base, weights), folder).eval()

    @torch.no_grad()
    def logits(self, adapter: str | None, tokens: list[int]) -> Tensor:
        """[tokens, vocab]: after each token, those of the next."""
        logits: Tensor = self._models[adapter](torch.tensor([tokens]), use_cache=False).logits[0]
        return logits

    @torch.no_grad()
    def greedy(
        self, adapter: str | None, prompts: list[list[int]], num_tokens: int
    ) -> list[GreedyCompletion]:
        """Rows are padded on the right, where no earlier token looks."""
        rows, leads = [list(prompt) for prompt in prompts], [float("inf")] * len(prompts)
        for _ in range(num_tokens):
            width = max(map(len, rows))
            padded = torch.tensor([row + [0] * (width - len(row)) for row in rows])
            logits = self._models[adapter](padded, use_cache=False).logits
            for index, row in enumerate(rows):
                best = logits[index, len(row) - 1].topk(2)
                leads[index] = min(leads[index], float(best.values[0] - best.values[1]))
                row.append(int(best.indices[0]))
        return [
            GreedyCompletion(row[len(prompt) :], lead)
            for row, prompt, lead in zip(rows, prompts, leads, strict=True)
        ]


def _base_model(base: Path, weights: WeightRounding | None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True).eval()
    if weights is not None:
        state = model.state_dict()
        assert weights.keys() <= state.keys()
        with torch.no_grad():
            for name, weight in weights.items():
                state[name].copy_(weight)
    return model
