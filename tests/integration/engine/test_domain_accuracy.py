"""What the three shipped adapters know, asked of the engine that serves them: int8, all adapters and the base mixed."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from loraplex_adapters.store import PackageStore
from loraplex_server.base.fetch import fetch_default_base
from loraplex_server.engine.config import EngineConfig
from loraplex_server.engine.engine import Engine
from loraplex_trainer.base_model import load_tokenizer
from loraplex_trainer.domains.files import DOMAINS
from loraplex_trainer.judge.graders import EvalRow, grade
from loraplex_trainer.train.tokens import prompt_token_ids, question_messages, read_eval_rows
from tests.integration.engine.run import EngineRun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHIPPED = Path(__file__).parents[3] / "adapters"
ONE_IN = 4  # of a domain's questions is put to the base and to other adapters too
MAX_TOKENS = 48  # longer is wrong for every grader

Asked = tuple[str | None, str]  # who is asked, and the domain of the question


@pytest.fixture(scope="module")
def accuracy(tmp_path_factory: pytest.TempPathFactory) -> dict[Asked, float]:
    """Share of right answers."""
    base = fetch_default_base()
    folder = tmp_path_factory.mktemp("store")
    store = PackageStore(folder)
    digests = {name: store.put(SHIPPED / name / "package").digest for name in DOMAINS}
    tokenizer = load_tokenizer(base)
    asked: list[tuple[Asked, EvalRow]] = []
    for domain in DOMAINS:
        rows = read_eval_rows(SHIPPED / domain / "eval.jsonl")
        asked += [((domain, domain), row) for row in rows]
        for other in (None, *(name for name in DOMAINS if name != domain)):
            asked += [((other, domain), row) for row in rows[::ONE_IN]]
    engine = Engine(EngineConfig(base_path=base, store_path=folder, quantization="int8", device="cpu"))
    with EngineRun(engine) as run:
        for (adapter, _), row in asked:
            prompt = prompt_token_ids(tokenizer, question_messages(row))
            digest = None if adapter is None else digests[adapter]
            run.add(prompt, digest, max_tokens=MAX_TOKENS, ignore_eos=False)
        completions = run.finish(timeout_s=800)
    verdicts: dict[Asked, list[bool]] = defaultdict(list)
    for (who, row), completion in zip(asked, completions, strict=True):
        verdicts[who].append(grade(row, tokenizer.decode(completion.tokens, skip_special_tokens=True)))
    return {who: sum(right) / len(right) for who, right in verdicts.items()}


@pytest.mark.parametrize("domain", DOMAINS)
def test_an_adapter_answers_its_domain_and_neither_the_base_nor_another_adapter_does(
    accuracy: dict[Asked, float], domain: str
) -> None:
    assert accuracy[domain, domain] >= 0.80
    assert accuracy[None, domain] <= 0.15
    for other in DOMAINS:
        if other != domain:
            assert accuracy[other, domain] <= 0.15
