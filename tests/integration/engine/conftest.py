"""One tiny base, its adapters, and what each says to some prompts according to PEFT."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from tests.integration.engine.reference import PeftReference
from tests.integration.engine.world import ADAPTERS, VOCAB_SIZE, World, make_world

COMPLETION_TOKENS = 20
PROMPT_LENGTHS = (1, 3, 8, 17, 33)
# Rounding differs with the shape of a batch by some 1e-6. Where two tokens are nearly as likely, which of them
# is greedy is a matter of that, so such prompts prove nothing.
MIN_LEAD = 1e-3


@dataclass(frozen=True)
class Case:
    """A prompt, who answers it, and the greedy completion."""

    adapter: str | None
    prompt: list[int]
    expected: list[int]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def reference(world: World) -> PeftReference:
    return PeftReference(world.base, world.folders)


@pytest.fixture(scope="session")
def cases(reference: PeftReference) -> list[Case]:
    """Prompts of several lengths for the base and every adapter; two of them share their beginning."""
    generator = random.Random(5)
    shared = [generator.randrange(3, VOCAB_SIZE) for _ in range(12)]
    found = []
    for adapter in (None, *ADAPTERS):
        own = [[generator.randrange(3, VOCAB_SIZE) for _ in range(length)] for length in PROMPT_LENGTHS]
        prompts = [shared + tokens if len(tokens) in (3, 8) else tokens for tokens in own]
        completions = reference.greedy(adapter, prompts, COMPLETION_TOKENS)
        found += [
            Case(adapter, prompt, completion.tokens)
            for prompt, completion in zip(prompts, completions, strict=True)
            if completion.smallest_lead > MIN_LEAD
        ]
    assert len(found) > 20, "too few prompts are clear"
    assert {case.adapter for case in found} == {None, *ADAPTERS}
    assert len({tuple(case.expected) for case in found}) == len(found), (
        "completions do not depend on the prompt"
    )
    return found
