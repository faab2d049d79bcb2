"""Answers to golden prompts: asked of the engine, and compared with one another and with the trainer's model."""

from __future__ import annotations

from collections.abc import Sequence

from loraplex_trainer.judge import gate_checks
from loraplex_trainer.judge.engine_session import EngineAnswer, EngineRequest, EngineSession
from loraplex_trainer.judge.model_session import ModelSession

GOLDEN_TOKENS = 8


def compared(
    session: ModelSession, prompt: Sequence[int], answer: EngineAnswer
) -> list[gate_checks.Position]:
    """What the trainer's model thinks of each token that the engine chose with the adapter."""
    trained = session.next_token_log_probabilities(prompt, answer.token_ids, with_adapter=True)
    return [
        gate_checks.Position(
            engine=top,
            trainer={token: float(row[token]) for token in top},
            chosen=chosen,
            trainer_best=float(row.max()),
        )
        for row, top, chosen in zip(trained, answer.top, answer.token_ids, strict=True)
    ]


async def golden_answers(
    engine: EngineSession, prompts: Sequence[Sequence[int]], digest: str | None
) -> list[EngineAnswer]:
    """Fixed, short answers to prompts, of the adapter or with None of the base."""
    return await engine.complete(
        [EngineRequest(prompt, digest, GOLDEN_TOKENS, ignore_eos=True) for prompt in prompts]
    )


def difference(one: EngineAnswer, other: EngineAnswer) -> float:
    """Largest difference of a log-probability up to the first other token: behind it, the texts are others."""
    largest = 0.0
    positions = zip(one.token_ids, other.token_ids, one.top, other.top, strict=False)
    for token, other_token, top, other_top in positions:
        shared = top.keys() & other_top.keys()
        largest = max(largest, *(abs(top[key] - other_top[key]) for key in shared), 0.0)
        if token != other_token:
            break
    return largest
