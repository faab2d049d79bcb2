"""Served equals trained: the trainer's logits and the engine process's, for each shipped adapter and precision."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from loraplex_server.base.fetch import fetch_default_base
from loraplex_trainer.base_model import Precision, load_for_evaluation, load_tokenizer
from loraplex_trainer.domains.files import DOMAINS
from loraplex_trainer.judge import model_session
from loraplex_trainer.judge.engine_session import EngineAnswer, EngineRequest, EngineSession
from loraplex_trainer.judge.gate_checks import parity_check
from loraplex_trainer.judge.gate_golden import compared
from loraplex_trainer.judge.graders import EvalRow
from loraplex_trainer.judge.model_session import ModelSession
from loraplex_trainer.train.tokens import prompt_token_ids, question_messages, read_eval_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHIPPED = Path(__file__).parents[3] / "adapters"
CPU = torch.device("cpu")
# Questions of each domain, and tokens of an answer.
SIZES: dict[Precision, tuple[int, int]] = {"fp32": (2, 32), "int8": (3, 8), "nf4": (1, 6)}


@dataclass(frozen=True)
class Served:
    """A question of a domain, and what the engine answered with that domain's adapter."""

    domain: str
    prompt: list[int]
    answer: EngineAnswer


@pytest.fixture(scope="module")
def base() -> Path:
    return fetch_default_base()


def serve(base: Path, precision: Precision) -> list[Served]:
    """All adapters in the same batches."""
    num_questions, num_tokens = SIZES[precision]
    tokenizer = load_tokenizer(base)
    asked = [
        (name, prompt_token_ids(tokenizer, question_messages(row)))
        for name in DOMAINS
        for row in _spread(read_eval_rows(SHIPPED / name / "eval.jsonl"), num_questions)
    ]

    async def ask() -> list[EngineAnswer]:
        async with EngineSession(base, precision, device="cpu") as engine:
            digests = {name: engine.put(SHIPPED / name / "package") for name in DOMAINS}
            return await engine.complete(
                [EngineRequest(prompt, digests[name], num_tokens, ignore_eos=True) for name, prompt in asked]
            )

    answers = asyncio.run(ask())
    return [Served(name, prompt, answer) for (name, prompt), answer in zip(asked, answers, strict=True)]


def _spread(rows: Sequence[EvalRow], count: int) -> Sequence[EvalRow]:
    return rows[:: len(rows) // count][:count]


@pytest.mark.parametrize("precision", sorted(SIZES))
def test_the_engines_log_probabilities_are_the_trainers(
    base: Path, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(base, precision)
    loaded = load_for_evaluation(base, precision, CPU)
    # Every session has a base of its own, but it is read and rounded once.
    monkeypatch.setattr(model_session, "load_for_evaluation", lambda *_: copy.deepcopy(loaded))
    for name in DOMAINS:
        session = ModelSession(base, precision, SHIPPED / name / "package", CPU)
        mine = [one for one in served if one.domain == name]
        check = parity_check([compared(session, one.prompt, one.answer) for one in mine], precision)
        assert check.verdict == "pass", f"{name}: {check.message}"
        if precision == "fp32":
            for one in mine:
                rows = session.next_token_log_probabilities(
                    one.prompt, one.answer.token_ids, with_adapter=True
                )
                assert (
                    list(one.answer.token_ids) == rows.argmax(-1).tolist()
                )  # all 32, past the answer's end too
