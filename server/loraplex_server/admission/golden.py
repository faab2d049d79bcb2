"""Golden prompts: an adapter whose answers are the base's own is refused, as nobody would notice that it is not there.

What counts as an effect. An adapter that does nothing (B all zero, or so small that it vanishes in the engine's
precision) adds exactly 0 to every product, so run beside the base it gives the base's numbers. Run at another time it
need not, since the shape of a batch decides in which order a row is summed up. Largest difference of log-probabilities
of the base alone and among up to 25 other sequences, SmolLM2-135M on a CPU: 0 in int8, 2e-5 in fp32, 0.25 in bf16,
where 2 of 48 answers also had other tokens. An adapter of a ten-thousandth of a trained one's strength: 0.8, 8e-4 and
0.2. So no threshold parts noise from weak adapters.

Instead, a difference larger than any noise (`CLEAR_EFFECT`) counts at once, none at all (`NOISE_FLOOR`) refuses at
once, and what lies between is asked again, base and adapter together, so that they share their batches as a rule. An
effect shows every time, noise does not. In doubt the adapter is admitted: refusing a real one is the worse fault.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from loraplex_adapters.errors import NOT_FINITE, AdapterInvalidError, NoEffectError

DEFAULT_PROMPTS = (
    "What can you help me with?",
    "Summarize the main idea in one sentence:",
    "The customer asked for a refund because",
    "List three steps to get started.",
)
MAX_TOKENS = (
    1  # of each answer: its log-probabilities tell already, and running streams feel one step instead of many
)
CLEAR_EFFECT = 1.0  # largest difference of log-probabilities that is still asked again
NOISE_FLOOR = 1e-5  # difference of log-probabilities that is none
_REPEATS = 5  # comparisons side by side; noise that differs in all of them passes for an effect


@dataclass(frozen=True, slots=True)
class GoldenAnswer:
    """A greedy completion of a prompt."""

    token_ids: list[int]
    logprobs: list[list[float]]  # of the likeliest tokens at each position, best first


@dataclass(frozen=True, slots=True)
class _Comparison:
    """An adapter's answer beside the base's."""

    difference: float  # largest, of log-probabilities
    has_equal_tokens: bool

    @property
    def is_clear(self) -> bool:
        """No noise makes such a difference."""
        return self.difference > CLEAR_EFFECT

    @property
    def is_none(self) -> bool:
        return self.difference <= NOISE_FLOOR and self.has_equal_tokens


class Completer(Protocol):
    """The engine, as far as golden prompts need it."""

    async def __call__(self, token_ids: list[int], digest: str | None, max_tokens: int) -> GoldenAnswer:
        """Complete greedily with the stored package of `digest`, or with the base (None)."""


class GoldenPrompts:
    """Asks the engine the same prompts of every adapter. Owned by one event loop; the base's answers are kept."""

    def __init__(self, complete: Completer, prompts: Sequence[list[int]]) -> None:
        """`prompts` are token ids; at least one prompt. `DEFAULT_PROMPTS`, encoded, will do for any base."""
        if not prompts:
            raise ValueError("golden prompts: at least one is needed")
        self._complete = complete
        self._prompts = [list(prompt) for prompt in prompts]
        self._base_answers: dict[int, GoldenAnswer] = {}

    async def prove_effect(self, digest: str) -> None:
        """Returns when the adapter has been seen to change an answer.

        Raises NoEffectError where it changes none, AdapterInvalidError where its answers are not finite numbers, and
        what the engine raises.
        """
        doubtful: list[list[int]] = []
        # The first prompt by itself tells of most adapters; the others share a step of the engine.
        for indices in ([0], list(range(1, len(self._prompts)))):
            compared = await asyncio.gather(*(self._compare(index, digest) for index in indices))
            if any(comparison.is_clear for comparison in compared):
                return
            doubtful += [
                self._prompts[index]
                for index, comparison in zip(indices, compared, strict=True)
                if not comparison.is_none
            ]
        for _ in range(_REPEATS):
            differ = await asyncio.gather(*(self._differs(prompt, digest) for prompt in doubtful))
            doubtful = [prompt for prompt, is_other in zip(doubtful, differ, strict=True) if is_other]
        if doubtful:
            return
        raise NoEffectError(
            f"the adapter answers {len(self._prompts)} golden prompts exactly as the base does; it seems untrained, or "
            "trained on other modules than those in the package"
        )

    async def _compare(self, index: int, digest: str) -> _Comparison:
        base, answer = await asyncio.gather(
            self._base_answer(index), self._answer(self._prompts[index], digest)
        )
        return _Comparison(largest_difference(base, answer), answer.token_ids == base.token_ids)

    async def _differs(self, prompt: list[int], digest: str) -> bool:
        base, answer = await asyncio.gather(self._complete_base(prompt), self._answer(prompt, digest))
        return not _Comparison(largest_difference(base, answer), answer.token_ids == base.token_ids).is_none

    async def _base_answer(self, index: int) -> GoldenAnswer:
        if index not in self._base_answers:
            self._base_answers[index] = await self._complete_base(self._prompts[index])
        return self._base_answers[index]

    async def _complete_base(self, prompt: list[int]) -> GoldenAnswer:
        return await self._complete(prompt, None, MAX_TOKENS)

    async def _answer(self, prompt: list[int], digest: str) -> GoldenAnswer:
        answer = await self._complete(prompt, digest, MAX_TOKENS)
        if not all(math.isfinite(value) for position in answer.logprobs for value in position):
            raise AdapterInvalidError(NOT_FINITE)
        return answer


def largest_difference(one: GoldenAnswer, other: GoldenAnswer) -> float:
    """Largest difference of log-probabilities, up to the first position where the tokens differ: behind it, the two
    answer different texts.

    >>> largest_difference(GoldenAnswer([1, 2], [[-1.0], [-2.0]]), GoldenAnswer([1, 3], [[-1.5], [-2.0]]))
    0.5
    """
    largest = 0.0
    tokens = zip(one.token_ids, other.token_ids, strict=False)  # either may end earlier
    values = zip(one.logprobs, other.logprobs, strict=False)
    for (token, other_token), (mine, theirs) in zip(tokens, values, strict=False):
        largest = max(largest, *(abs(a - b) for a, b in zip(mine, theirs, strict=False)))
        if token != other_token:
            break
    return largest
