"""The three domains' adapters as the engine serves them and as they were trained: the same distributions (fp32)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from loraplex_adapters.store import PackageStore
from loraplex_server.base.fetch import fetch_default_base
from loraplex_server.engine.config import EngineConfig
from loraplex_server.engine.engine import Engine
from loraplex_trainer.base_model import load_for_evaluation, load_tokenizer
from loraplex_trainer.domains.files import DOMAINS
from loraplex_trainer.judge.graders import EvalRow, grade
from loraplex_trainer.train.tokens import prompt_token_ids, question_messages, read_eval_rows
from tests.integration.engine.run import Completion, EngineRun

pytestmark = pytest.mark.slow

SHIPPED = Path(__file__).parents[3] / "adapters"
QUESTIONS = 3  # of each domain
TOP = 20
TOLERANCE = 2e-4  # of a log-probability; 7e-5 was measured over the 30 layers


@dataclass(frozen=True)
class Answered:
    """A held-out question and what the engine made of it, in a batch with all others."""

    adapter: str | None
    row: EvalRow
    completion: Completion


@pytest.fixture(scope="module")
def base() -> Path:
    return fetch_default_base()


@pytest.fixture(scope="module")
def answered(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Answered]:
    folder = tmp_path_factory.mktemp("store")
    store = PackageStore(folder)
    digests = {name: store.put(SHIPPED / name / "package").digest for name in DOMAINS}
    engine = Engine(
        EngineConfig(base_path=base, store_path=folder, quantization="fp32", device="cpu", num_threads=1)
    )
    tokenizer = load_tokenizer(base)
    asked: list[tuple[str | None, EvalRow]] = []
    with EngineRun(engine) as run:
        run.load(*digests.values())
        for name in DOMAINS:
            rows = read_eval_rows(SHIPPED / name / "eval.jsonl")
            chosen = rows[:: max(1, len(rows) // QUESTIONS)][:QUESTIONS]
            asked += [(name, row) for row in chosen] + [(None, chosen[0])]
        for adapter, row in asked:
            digest = None if adapter is None else digests[adapter]
            prompt = prompt_token_ids(tokenizer, question_messages(row))
            run.add(prompt, digest, max_tokens=40, ignore_eos=False, top_logprobs=TOP)
        completions = run.finish(timeout_s=240)
        assert run.totals.max_batch_adapters == len(DOMAINS)
        run.assert_nothing_is_left(*digests.values())
    return [Answered(adapter, row, done) for (adapter, row), done in zip(asked, completions, strict=True)]


@pytest.fixture(scope="module")
def peft_model(base: Path) -> Any:
    model = load_for_evaluation(base, "fp32", torch.device("cpu"))
    first, *others = DOMAINS
    adapted = PeftModel.from_pretrained(model, SHIPPED / first / "package", adapter_name=first)
    for name in others:
        adapted.load_adapter(SHIPPED / name / "package", adapter_name=name)
    return adapted.eval()


@torch.no_grad()
def log_probabilities(peft_model: Any, answer: Answered) -> torch.Tensor:
    """At each token of the completion, [tokens, vocab]."""
    tokens = torch.tensor([answer.completion.prompt + answer.completion.tokens])
    start = len(answer.completion.prompt) - 1
    if answer.adapter is None:
        with peft_model.disable_adapter():
            logits = peft_model(tokens).logits
    else:
        peft_model.set_adapter(answer.adapter)
        logits = peft_model(tokens).logits
    distribution: torch.Tensor = logits[0, start:-1].log_softmax(-1)
    return distribution


def test_the_engine_and_peft_agree_on_every_shipped_adapter(
    peft_model: Any, answered: list[Answered]
) -> None:
    for answer in answered:
        expected = log_probabilities(peft_model, answer)
        for row, position in zip(expected, answer.completion.logprobs, strict=True):
            ids = [position.token_id, *(token_id for token_id, _ in position.top)]
            ours = torch.tensor([position.logprob, *(value for _, value in position.top)])
            torch.testing.assert_close(ours, row[ids], atol=TOLERANCE, rtol=0)
            assert row[position.token_id] >= row.max() - TOLERANCE


def test_the_shipped_adapters_answer_and_the_base_does_not(base: Path, answered: list[Answered]) -> None:
    tokenizer = load_tokenizer(base)
    right = {True: 0, False: 0}
    for answer in answered:
        text = tokenizer.decode(answer.completion.tokens, skip_special_tokens=True)
        right[answer.adapter is not None] += grade(answer.row, text)
    assert right[True] >= 0.8 * QUESTIONS * len(DOMAINS)
    assert right[False] == 0
