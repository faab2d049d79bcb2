"""Golden prompts against an engine of a few lines: what an adapter adds, and how much the batch shakes."""

from __future__ import annotations

import asyncio
import math
import random

import pytest

from loraplex_adapters.errors import AdapterInvalidError, NoEffectError
from loraplex_server.admission.golden import DEFAULT_PROMPTS, GoldenAnswer, GoldenPrompts

_PROMPTS = [[1, 2, 3], [4, 5]]


class Engine:
    """Three likeliest tokens per position. What runs at once shares a batch, and its noise."""

    def __init__(self, effect: float = 0.0, noise: float = 0.0, on_prompt: int | None = None) -> None:
        """`effect` on log-probabilities of every adapter, on prompts that begin with `on_prompt` (None: all)."""
        self.effect = effect
        self._noise = noise
        self._on_prompt = on_prompt
        self._random = random.Random(7)
        self._batch: float | None = None
        self.asked: list[str | None] = []
        self.changes_tokens = False

    async def __call__(self, token_ids: list[int], digest: str | None, max_tokens: int) -> GoldenAnswer:
        self.asked.append(digest)
        if self._batch is None:
            self._batch = self._random.uniform(-1, 1) * self._noise
            await asyncio.sleep(0)  # whoever asks at the same time comes into this batch
        shaken, self._batch = self._batch, self._batch
        await asyncio.sleep(0)
        self._batch = None
        is_touched = digest is not None and self._on_prompt in (None, token_ids[0])
        added = self.effect if is_touched else 0.0
        token = 9 if is_touched and self.changes_tokens else token_ids[0]
        return GoldenAnswer([token] * max_tokens, [[-0.1 + shaken + added, -3.0 + shaken, -5.0]] * max_tokens)


async def test_an_adapter_that_changes_an_answer_clearly_is_taken_at_once() -> None:
    engine = Engine(effect=2.0)

    await GoldenPrompts(engine, _PROMPTS).prove_effect("a" * 64)

    assert set(engine.asked) == {None, "a" * 64}
    assert len(engine.asked) == 2


@pytest.mark.parametrize("noise", [0.0, 2e-5, 0.002, 0.25])
async def test_an_adapter_that_changes_nothing_is_refused_however_the_batches_shake(noise: float) -> None:
    with pytest.raises(NoEffectError, match="2 golden prompts"):
        await GoldenPrompts(Engine(noise=noise), _PROMPTS).prove_effect("a" * 64)


@pytest.mark.parametrize("noise", [0.0, 2e-5, 0.002, 0.25])
@pytest.mark.parametrize("effect", [1e-4, 0.003, 0.1])
async def test_a_weak_adapter_is_admitted_however_the_batches_shake(effect: float, noise: float) -> None:
    await GoldenPrompts(Engine(effect, noise), _PROMPTS).prove_effect("a" * 64)


async def test_an_effect_on_one_prompt_is_enough() -> None:
    await GoldenPrompts(Engine(0.003, 0.002, on_prompt=4), _PROMPTS).prove_effect("a" * 64)


async def test_other_tokens_of_equal_probability_are_an_effect() -> None:
    engine = Engine()
    engine.changes_tokens = True

    await GoldenPrompts(engine, _PROMPTS).prove_effect("a" * 64)


async def test_the_base_is_asked_once_for_all_adapters() -> None:
    engine = Engine(effect=2.0)
    prompts = GoldenPrompts(engine, _PROMPTS)

    for digest in ("a" * 64, "b" * 64, "c" * 64):
        await prompts.prove_effect(digest)

    assert engine.asked.count(None) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
async def test_answers_that_are_no_numbers_are_refused(value: float) -> None:
    with pytest.raises(AdapterInvalidError, match="not finite"):
        await GoldenPrompts(Engine(effect=value), _PROMPTS).prove_effect("a" * 64)


async def test_answers_of_other_lengths_are_compared_as_far_as_both_go() -> None:
    async def complete(token_ids: list[int], digest: str | None, max_tokens: int) -> GoldenAnswer:
        length = 2 if digest else 1
        return GoldenAnswer([7] * length, [[-1.0]] * length)

    await GoldenPrompts(complete, _PROMPTS).prove_effect("a" * 64)  # other tokens, every time


async def test_no_prompts_prove_nothing() -> None:
    with pytest.raises(ValueError, match="at least one"):
        GoldenPrompts(Engine(), [])
    assert len(DEFAULT_PROMPTS) == 4
