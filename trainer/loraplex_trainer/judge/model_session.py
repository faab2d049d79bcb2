"""A base and one adapter over it, as transformers and PEFT run them: the trainer's side of every comparison.

Base and adapter are the same weights in memory, with the adapter switched off or on, so both get the same prompts in
the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraplex_trainer.base_model import Precision, default_device, load_for_evaluation, load_tokenizer
from loraplex_trainer.libraries import prepare_libraries

_ROWS = {"cpu": 32, "cuda": 512}  # of a batch that generates
_TOKENS = {"cpu": 4096, "cuda": 65_536}  # of a batch that is scored, padding included

OnDone = Callable[[int], None]
"""Called after each batch with its number of rows."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A greedy answer."""

    token_ids: tuple[int, ...]  # without the end-of-sequence token
    text: str  # stripped of spaces around
    ended: bool  # by itself, before `max_new_tokens`


class ModelSession:
    """Holds the model until it is dropped. Not thread-safe."""

    def __init__(
        self,
        base_folder: Path,
        precision: Precision,
        package: Path | None = None,
        device: torch.device | None = None,
    ) -> None:
        """`package` must have been checked by `read_package`: PEFT would load what the server refuses."""
        prepare_libraries()
        self.tokenizer = load_tokenizer(base_folder)
        self.device = device or default_device()
        model = load_for_evaluation(base_folder, precision, self.device)
        if package is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(package), torch_device=str(self.device))
        self._model: Any = model.eval()
        self._has_adapter = package is not None

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        with_adapter: bool,
        max_new_tokens: int,
        on_done: OnDone | None = None,
    ) -> list[Completion]:
        """Greedy completions of token ids, in the order of `prompts`."""
        done: dict[int, Completion] = {}
        for indices in _batches([len(prompt) for prompt in prompts], max_rows=_ROWS[self.device.type]):
            batch = [list(prompts[index]) for index in indices]
            done.update(zip(indices, self._complete_batch(batch, with_adapter, max_new_tokens), strict=True))
            if on_done is not None:
                on_done(len(indices))
        return [done[index] for index in range(len(prompts))]

    def log_likelihoods(
        self,
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        *,
        with_adapter: bool,
        on_done: OnDone | None = None,
    ) -> list[float]:
        """For each (context, continuation), both at least one token: log P(continuation | context)."""
        sums: dict[int, float] = {}
        lengths = [len(context) + len(continuation) for context, continuation in pairs]
        for indices in _batches(lengths, max_tokens=_TOKENS[self.device.type]):
            chosen = [pairs[index] for index in indices]
            scores = self._token_scores(chosen, with_adapter)
            sums.update(zip(indices, [float(row.sum()) for row in scores], strict=True))
            if on_done is not None:
                on_done(len(indices))
        return [sums[index] for index in range(len(pairs))]

    def next_token_log_probabilities(
        self, prompt: Sequence[int], completion: Sequence[int], *, with_adapter: bool
    ) -> Tensor:
        """[len(completion), vocab] fp32 on the CPU: the distribution before each token of `completion`."""
        ids = torch.tensor([[*prompt, *completion]], device=self.device)
        with torch.inference_mode(), self._adapter(with_adapter):
            logits = self._model(input_ids=ids, logits_to_keep=len(completion) + 1, use_cache=False).logits
        distributions: Tensor = logits[0, :-1].float().log_softmax(-1).cpu()
        return distributions

    @contextmanager
    def model(self, *, with_adapter: bool) -> Iterator[Any]:
        """The model for a library that drives it itself, with the adapter off or on meanwhile."""
        with self._adapter(with_adapter):
            yield self._model

    def _adapter(self, with_adapter: bool) -> AbstractContextManager[Any]:
        if with_adapter and not self._has_adapter:
            raise ValueError("this session has no adapter")
        if with_adapter or not self._has_adapter:
            return nullcontext()
        disabled: AbstractContextManager[Any] = self._model.disable_adapter()
        return disabled

    def _complete_batch(
        self, prompts: list[list[int]], with_adapter: bool, max_new_tokens: int
    ) -> Iterator[Completion]:
        ids, mask = self._padded(prompts)
        eos = self.tokenizer.eos_token_id
        with torch.inference_mode(), self._adapter(with_adapter):
            output = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=self._pad_id,
                eos_token_id=eos,
            )
        for row in output[:, ids.shape[1] :].tolist():
            ended = eos in row
            tokens = tuple(row[: row.index(eos)] if ended else row)
            yield Completion(tokens, self.tokenizer.decode(tokens, skip_special_tokens=True).strip(), ended)

    def _token_scores(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], with_adapter: bool
    ) -> Iterator[Tensor]:
        """Log-probability of each continuation token, one row per pair."""
        ids, mask = self._padded([[*context, *continuation] for context, continuation in pairs])
        kept = max(len(continuation) for _, continuation in pairs) + 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with torch.inference_mode(), self._adapter(with_adapter):
            logits = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                logits_to_keep=kept,
                use_cache=False,
            ).logits
            targets = ids[:, -kept + 1 :]
            chosen = logits[:, :-1].gather(-1, targets.unsqueeze(-1)).squeeze(-1).float()
            scores = (chosen - logits[:, :-1].float().logsumexp(-1)).cpu()
        for row, (_, continuation) in zip(scores, pairs, strict=True):
            yield row[-len(continuation) :]

    @property
    def _pad_id(self) -> int:
        pad: int | None = self.tokenizer.pad_token_id
        eos: int = self.tokenizer.eos_token_id
        return eos if pad is None else pad

    def _padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask [rows, longest]; padding stands on the left, so that every row's end is in the last columns."""
        longest = max(map(len, rows))
        ids = [[self._pad_id] * (longest - len(row)) + row for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)


def _batches(
    lengths: Sequence[int], max_rows: int | None = None, max_tokens: int | None = None
) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, so that what does not fit shows at once."""
    batch: list[int] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        longest = longest if batch else lengths[index]
        is_full = len(batch) == max_rows or (
            max_tokens is not None and (len(batch) + 1) * longest > max_tokens
        )
        if batch and is_full:
            yield batch
            batch, longest = [], lengths[index]
        batch.append(index)
    if batch:
        yield batch
