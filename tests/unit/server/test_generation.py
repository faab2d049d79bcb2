"""What a request is told before it reaches the engine, and that it leaves nothing behind then."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from loraplex_adapters.base_spec import BaseSpec
from loraplex_adapters.errors import AdapterNotFoundError, InvalidRequestError
from loraplex_adapters.names import AdapterReference
from loraplex_adapters.registry import AdapterRegistry
from loraplex_adapters.store import PackageStore
from loraplex_server.engine.config import EngineConfig
from loraplex_server.engine.messages import SamplingParams
from loraplex_server.engine_client import EngineClient
from loraplex_server.errors import ContextOverflowError, DrainingError, EngineUnavailableError
from loraplex_server.generation import GenerationLimits, GenerationRequest, GenerationService
from loraplex_server.releases.directory import AdapterDirectory
from loraplex_server.releases.packages import ServerPackages
from loraplex_server.tokenizer import BaseTokenizer, Prompt
from tests.unit.server.tokenizers import byte_level

CONTEXT = 20
LIMITS = GenerationLimits(
    max_waiting=4,
    max_context_tokens=CONTEXT,
    max_output_tokens=50,
    max_running=4,
    default_deadline_s=30.0,
    max_deadline_s=60.0,
)


@pytest.fixture
def service(tmp_path: Path) -> GenerationService:
    """With an engine that has not started. The model has an embedding for all tokens but the last."""
    byte_level().save(str(tmp_path / "tokenizer.json"))
    vocab_size = BaseTokenizer(tmp_path).vocab_size
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": vocab_size - 1}))
    registry = AdapterRegistry("sqlite://")
    packages = ServerPackages(
        registry, PackageStore(tmp_path / "store"), tmp_path / "images", is_shared=False
    )
    directory = AdapterDirectory(registry, packages, BaseSpec("LlamaForCausalLM", "f" * 64, 1, {}))
    config = EngineConfig(base_path=tmp_path, store_path=tmp_path / "store")
    engine = EngineClient(config, on_state=lambda state: None, on_stats=lambda stats: None)
    return GenerationService(engine, BaseTokenizer(tmp_path), directory, LIMITS)


def request(prompt: Prompt = "hi", adapter: str = "", max_tokens: int | None = None) -> GenerationRequest:
    reference = AdapterReference.parse(adapter) if adapter else None
    return GenerationRequest(
        adapter=reference, prompt=prompt, sampling=SamplingParams(), max_tokens=max_tokens
    )


REFUSED: list[tuple[GenerationRequest, type[Exception], str]] = [
    (request(), EngineUnavailableError, "starting or restarting"),
    (request(adapter="finance/faq"), AdapterNotFoundError, "finance/faq"),
    (request((1,) * CONTEXT), ContextOverflowError, "the prompt has 20 tokens and 1 more are asked for"),
    (request((1,) * 15, max_tokens=6), ContextOverflowError, "15 tokens and 6 more are asked for"),
    (request((1,) * 15, max_tokens=5), EngineUnavailableError, "starting or restarting"),
    (request(()), InvalidRequestError, "the prompt has no tokens"),
]


@pytest.mark.parametrize(("refused", "error", "message"), REFUSED, ids=lambda value: str(value)[:40])
async def test_a_request_that_cannot_run_is_told_why_and_is_not_in_flight_any_more(
    service: GenerationService, refused: GenerationRequest, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        [event async for event in service.generate(refused)]

    assert service.num_in_flight == 0
    await service.wait_until_idle()


@pytest.mark.parametrize(
    "prompt_of",
    [lambda last: (1, last), lambda last: byte_level().decode([last], skip_special_tokens=False)],
    ids=["ids", "text"],
)
async def test_a_token_that_the_model_has_no_embedding_for_never_reaches_it(
    service: GenerationService, prompt_of: Callable[[int], Prompt]
) -> None:
    """It would end the engine, and every other request with it."""
    last = byte_level().get_vocab_size() - 1

    with pytest.raises(InvalidRequestError, match=f"must be below {last}"):
        [event async for event in service.generate(request(prompt_of(last)))]


async def test_a_draining_server_admits_nothing(service: GenerationService) -> None:
    service.start_draining()
    with pytest.raises(DrainingError, match="another one or again later"):
        [event async for event in service.generate(request())]
    await service.wait_until_idle()


async def test_tokens_are_counted_without_an_engine_and_a_long_prompt_in_a_thread(
    service: GenerationService,
) -> None:
    assert await service.count_tokens("hi") == len(byte_level().encode("hi").ids)
    started_s = time.monotonic()
    assert await service.count_tokens("a b " * 5000) >= 5000
    assert time.monotonic() - started_s < 10
