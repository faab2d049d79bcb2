"""The default base, quantized, with the three adapters that are shipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loraplex_cli.demo.questions import Domain, find_adapters, messages, read_domains
from loraplex_client import AsyncLoraplexClient
from loraplex_server.base.fetch import DEFAULT_BASE_ID
from loraplex_trainer.judge.graders import grade, share_right
from tests.integration.health import NOT_SERVING, SERVING, next_status, watched_health
from tests.integration.live_server import LiveServer, running_server
from tests.integration.streams import answer_all

pytestmark = pytest.mark.slow

QUESTIONS_PER_DOMAIN = 10
SMOL: dict[str, Any] = {
    "quantization": "int8",
    "num_threads": 2,
    "max_context_tokens": 2048,
    "kv_cache_bytes": 256 * 2**20,
    "adapter_arena_bytes": 64 * 2**20,
}


@pytest.fixture(scope="module")
def domains() -> list[Domain]:
    return read_domains(find_adapters(Path(__file__).parents[3] / "adapters"))


@pytest.fixture(scope="module")
def smol_server(domains: list[Domain], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with running_server(DEFAULT_BASE_ID, tmp_path_factory.mktemp("smol-server"), **SMOL) as live:
        with live.client() as client:
            for domain in domains:
                client.adapters.upload(domain.name, domain.package)
        yield live


def questions(domains: list[Domain], *, by_base: bool = False) -> list[dict[str, Any]]:
    """The first questions of every domain, those of the domains in turn."""
    return [
        {
            "messages": messages(row),
            "adapter": "" if by_base else domain.name,
            "temperature": 0,
            "max_tokens": 48,
        }
        for rows in zip(*(domain.questions[:QUESTIONS_PER_DOMAIN] for domain in domains), strict=True)
        for domain, row in zip(domains, rows, strict=True)
    ]


def accuracy(domains: list[Domain], texts: list[str]) -> dict[str, float]:
    """Share of right answers by domain; `texts` answer `questions`."""
    return {
        domain.name: share_right(
            grade(row, text)
            for row, text in zip(
                domain.questions[:QUESTIONS_PER_DOMAIN], texts[number :: len(domains)], strict=True
            )
        )
        for number, domain in enumerate(domains)
    }


async def test_three_domains_are_answered_right_in_shared_steps_and_the_base_knows_none_of_it(
    smol_server: LiveServer, domains: list[Domain]
) -> None:
    async with AsyncLoraplexClient(smol_server.target, timeout_s=280) as client:
        by_adapters = [answer.text for answer in await answer_all(client, questions(domains))]
        mixed = smol_server.metric("loraplex_batch_adapters_sum")
        steps = smol_server.metric("loraplex_batch_adapters_count")
        by_base = [answer.text for answer in await answer_all(client, questions(domains, by_base=True))]

    assert min(accuracy(domains, by_adapters).values()) >= 0.7
    assert max(accuracy(domains, by_base).values()) <= 0.15
    assert mixed / steps > 1.5


async def test_the_domains_answer_as_before_after_the_engine_was_killed(
    smol_server: LiveServer, domains: list[Domain]
) -> None:
    first = questions(domains)[: len(domains)]
    async with AsyncLoraplexClient(smol_server.target, timeout_s=280) as client:
        before = [(await client.generate(**question)).text for question in first]
        with watched_health(smol_server) as statuses:
            assert await next_status(statuses) == SERVING
            smol_server.kill_engine()
            assert await next_status(statuses) == NOT_SERVING
            assert await next_status(statuses) == SERVING
        after = [(await client.generate(**question)).text for question in first]

    assert after == before
