"""What users of other multi-adapter servers suffered: none of it happens here. Each test names the report.

Cases that other tests prove have their numbers there.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from loraplex_client import (
    AsyncLoraplexClient,
    LoraplexApiError,
    LoraplexClient,
    NotFoundError,
    PlannedAdapters,
)
from tests.integration.conftest import ADAPTERS, NewAdapter
from tests.integration.live_server import LiveServer, eventually
from tests.integration.streams import ENDLESS, GREEDY, PROMPT, begin, unchanged_streams

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SHORT: dict[str, Any] = {**GREEDY, "max_tokens": 8}
BLOCKS_OF_TEXT = "A prompt that fills several blocks of the cache, so that its beginning is found again. " * 4

Rename = Callable[[str], str]


@pytest.fixture
def client(few_slots_server: LiveServer) -> Iterator[LoraplexClient]:
    with few_slots_server.client() as made:
        yield made


@pytest_asyncio.fixture
async def aclient(few_slots_server: LiveServer) -> AsyncIterator[AsyncLoraplexClient]:
    async with AsyncLoraplexClient(few_slots_server.target, timeout_s=60) as made:
        yield made


@pytest.fixture
def copy_of_red(packages: Path, tmp_path: Path) -> Iterator[Path]:
    """A sound package that the test may change, below the server's root."""
    folder = packages / f"field-{tmp_path.name}"
    shutil.copytree(packages / "red", folder)
    yield folder
    shutil.rmtree(folder)


async def test_adapters_come_and_go_while_streams_of_others_run(
    few_slots_server: LiveServer, aclient: AsyncLoraplexClient, new_adapter: NewAdapter
) -> None:
    """vLLM #13698: loading an adapter during a generation crashed the server; #31941: a load stops everybody's steps.

    SGLang #8162, #13349: loading pauses serving. SkyRL #1647: updating one tenant pauses all of them.
    """
    folders = [new_adapter(f"coming{number}", r=1 + 4 * number) for number in range(3)]

    async with unchanged_streams(few_slots_server, ADAPTERS):
        for folder in folders * 2:
            registered = await aclient.adapters.create("coming/one", folder, on_existing="promote")
            answer = await aclient.generate(PROMPT, adapter="coming/one", **SHORT)
            assert answer.adapter_digest == registered.digest
        await aclient.adapters.rollback("coming/one")
        await aclient.adapters.delete("coming/one")


async def test_adapters_that_never_rest_do_not_keep_a_cold_one_waiting(
    aclient: AsyncLoraplexClient, new_adapter: NewAdapter
) -> None:
    """SGLang #15129, #17913: one hot adapter kept its slot for ever, and others' requests were never scheduled."""
    await aclient.adapters.create("rare", new_adapter("rare"))
    over = asyncio.Event()

    async def insist(adapter: str) -> None:
        while not over.is_set():
            await aclient.generate(PROMPT, adapter=adapter, **GREEDY)

    hot = [asyncio.create_task(insist(adapter)) for adapter in ADAPTERS * 3]  # each has always one that runs
    try:
        answers = [await aclient.generate(PROMPT, adapter="rare", **SHORT) for _ in range(3)]
    finally:
        over.set()
        await asyncio.gather(*hot)

    assert len({answer.token_ids for answer in answers}) == 1
    await aclient.adapters.delete("rare")


async def test_the_base_answers_while_every_slot_is_in_use(aclient: AsyncLoraplexClient) -> None:
    """SGLang #23141: a request for the base took an adapter's slot; one too many ended the server for all tenants."""
    alone = await aclient.generate(PROMPT, **SHORT)
    streams = [await begin(aclient.stream(PROMPT, adapter=name, **ENDLESS)) for name in ADAPTERS]
    assert (await aclient.server_info()).load.adapter_slots_used == len(ADAPTERS)

    answers = await asyncio.gather(*(aclient.generate(PROMPT, **SHORT) for _ in range(4)))

    assert {answer.token_ids for answer in answers} == {alone.token_ids}
    assert {answer.adapter_digest for answer in answers} == {""}
    for stream in streams:
        assert await anext(stream)  # they still run
        stream.cancel()


def test_new_weights_under_a_name_never_meet_the_old_ones_cached_prompt(
    client: LoraplexClient, packages: Path
) -> None:
    """Row 17. vLLM #42125, #45981, #48352: a reload under the same name reused the old adapter's cached blocks."""

    def ask(adapter: str) -> tuple[tuple[int, ...], bool]:
        answer = client.generate(BLOCKS_OF_TEXT, adapter=adapter, **GREEDY)
        return answer.token_ids, answer.usage.cached_prompt_tokens > 0

    client.adapters.create("reloaded", packages / "red")
    old, was_cached = ask("reloaded")
    assert not was_cached
    assert ask("reloaded") == (old, True)

    client.adapters.create("reloaded", packages / "green", on_existing="promote")
    new, was_cached = ask("reloaded")
    assert not was_cached
    assert new != old
    client.adapters.rollback("reloaded")
    assert ask("reloaded") == (old, True)  # whose blocks are still there
    client.adapters.delete("reloaded")
    client.adapters.create("reloaded", packages / "blue")
    newest, was_cached = ask("reloaded")
    assert not was_cached

    assert [new, newest] == [ask(name)[0] for name in ("green", "blue")]
    client.adapters.delete("reloaded")


def _of_a_model_with_a_vision_part(key: str) -> str:
    return key.replace("model.layers", "model.language_model.layers")


def _of_another_architecture(key: str) -> str:
    return key.replace("model.layers", "transformer.h")


def _without_the_prefix_of_peft(key: str) -> str:
    return key.removeprefix("base_model.model.")


def _of_another_trainer(key: str) -> str:
    return key.replace("lora_A", "lora_down").replace("lora_B", "lora_up")


def _of_packed_projections(key: str) -> str:
    return key.replace("q_proj", "qkv_proj")


def _with_one_module_astray(key: str) -> str:
    return key.replace("layers.1.mlp.up_proj", "layers.1.mlp.experts.0.up_proj")


def _of_one_layer_too_many(key: str) -> str:
    return key.replace("layers.1.", "layers.2.")


@pytest.mark.parametrize(
    "rename",
    [
        _of_a_model_with_a_vision_part,
        _of_another_architecture,
        _without_the_prefix_of_peft,
        _of_another_trainer,
        _of_packed_projections,
        _with_one_module_astray,
        _of_one_layer_too_many,
    ],
)
def test_weights_that_land_nowhere_are_refused_by_name_and_the_base_does_not_answer_for_them(
    client: LoraplexClient, copy_of_red: Path, rename: Rename
) -> None:
    """vLLM #34186, #55193, #48019, #41754, #34591, #39278, #11406: loaded with 200 OK, and the base was served."""
    tensors = load_file(copy_of_red / WEIGHTS)
    renamed = {rename(key): tensor for key, tensor in tensors.items()}
    astray = sorted(set(renamed) - set(tensors))
    save_file(renamed, copy_of_red / WEIGHTS)

    with pytest.raises(LoraplexApiError) as caught:
        client.adapters.create("astray", copy_of_red)

    assert caught.value.reason in ("ADAPTER_INVALID", "BASE_MISMATCH")
    module = astray[0].partition(".lora_")[0].removeprefix("base_model.model.")
    assert module in caught.value.message
    with pytest.raises(NotFoundError):
        client.generate(PROMPT, adapter="astray", **SHORT)


@pytest.mark.parametrize(
    ("strength", "told_by"),
    [
        (0, "a B of zeros"),
        # Ten times what the weights' own check lets pass, and too little for float32: it takes the engine to see that.
        (1e-9, "golden prompts exactly as the base does"),
    ],
)
def test_an_adapter_without_effect_is_refused_before_it_answers_as_the_base(
    client: LoraplexClient, copy_of_red: Path, strength: float, told_by: str
) -> None:
    """Row 9. The same reports as above, seen from their outcome: whatever the cause, nobody notices it in an answer."""
    tensors = load_file(copy_of_red / WEIGHTS)
    weakened = {key: t * strength if "lora_B" in key else t for key, t in tensors.items()}
    save_file(weakened, copy_of_red / WEIGHTS)

    with pytest.raises(LoraplexApiError) as caught:
        client.adapters.create("nothing", copy_of_red)

    assert caught.value.reason == "NO_EFFECT"
    assert told_by in caught.value.message


@pytest.mark.parametrize(
    "fields",
    [
        {"use_rslora": True},
        {"alpha_pattern": {"q_proj": 32}},
        {"rank_pattern": {"layers.1.self_attn.v_proj": 9}, "alpha_pattern": {"up_proj": 1}},
    ],
    ids=["rsLoRA", "alpha_pattern", "rank_pattern"],
)
def test_scaling_is_that_of_peft(
    client: LoraplexClient, tiny_base: Path, new_adapter: NewAdapter, fields: dict[str, Any]
) -> None:
    """SGLang and LMDeploy read neither use_rslora nor alpha_pattern: wrong strength, without a word."""
    folder = new_adapter("scaled", r=4, lora_alpha=4, **fields)
    client.adapters.create("scaled", folder)

    answer = client.generate(PROMPT, adapter="scaled", logprobs=0, **GREEDY)

    client.adapters.delete("scaled")
    prompt = AutoTokenizer.from_pretrained(tiny_base).encode(PROMPT)
    served = torch.tensor([position.chosen.logprob for position in answer.logprobs])
    expected = peft_logprobs(tiny_base, folder, prompt, answer.token_ids)
    torch.testing.assert_close(served, expected, atol=1e-4, rtol=0)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "use_rslora": False, "alpha_pattern": {}}))
    unscaled = peft_logprobs(tiny_base, folder, prompt, answer.token_ids)
    assert (unscaled - expected).abs().max() > 1e-2, "such a mistake would show"


@torch.inference_mode()
def peft_logprobs(base: Path, folder: Path, prompt: list[int], answer: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities of the answer's tokens, by transformers and PEFT."""
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), folder)
    logits: torch.Tensor = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]


def test_every_feature_that_is_not_served_is_named_when_an_adapter_comes(
    client: LoraplexClient, copy_of_red: Path
) -> None:
    """vLLM #9280: adapters trained happily with modules_to_save or DoRA were refused one feature after another."""
    config = json.loads((copy_of_red / CONFIG).read_text())
    unserved = {"use_dora": True, "modules_to_save": ["lm_head"], "lora_bias": True, "bias": "all"}
    (copy_of_red / CONFIG).write_text(json.dumps({**config, **unserved}))

    with pytest.raises(LoraplexApiError) as caught:
        client.adapters.create("unserved", copy_of_red)

    assert caught.value.reason == "UNSUPPORTED_PEFT_FEATURE"
    assert all(word in caught.value.message for word in ("DoRA", "modules_to_save", "lora_bias", "bias"))


def test_a_tenant_of_a_high_rank_comes_without_a_restart(
    client: LoraplexClient, new_adapter: NewAdapter
) -> None:
    """vLLM #2847, gpustack #5438: ranks above a constant of the start needed a restart of everybody."""
    limit = client.server_info().limits.max_lora_rank
    high = client.adapters.create("high", new_adapter("high", r=limit, target_modules=["q_proj", "o_proj"]))
    low = client.adapters.create("low", new_adapter("low", r=1, target_modules=["q_proj", "o_proj"]))

    assert (high.rank, low.rank) == (limit, 1)
    assert client.generate(PROMPT, adapter="high", **SHORT).adapter_digest == high.digest
    # And it costs the others nothing: an adapter takes the room of its own rank.
    each = client.adapters.plan(
        [PlannedAdapters(rank=rank, target_modules=("q_proj",)) for rank in (limit, 1)]
    )
    assert each.groups[0].bytes_each == limit * each.groups[1].bytes_each
    client.adapters.delete("high")
    client.adapters.delete("low")


def test_an_idle_adapter_stays_visible_with_where_it_is(
    few_slots_server: LiveServer, client: LoraplexClient
) -> None:
    """vLLM #45325: an adapter left the metrics as soon as it was idle, so nobody could see what is warm.

    #13303: all adapters of a batch in one label, joined by commas. triton server #8181: no metrics of adapters at all.
    """
    for name in ADAPTERS:
        client.generate(PROMPT, adapter=name, **SHORT)
    eventually(lambda: client.server_info().load.running == 0)

    for name in ADAPTERS:
        assert client.adapters.get(name).stable.is_resident
        assert few_slots_server.metric("loraplex_requests_total", adapter=name) > 0
        assert few_slots_server.metric("loraplex_completion_tokens_total", adapter=name) > 0
    assert few_slots_server.metric("loraplex_adapter_slots_used") == len(ADAPTERS)


@pytest.mark.parametrize("base_name", [None, "", "an-organization/a-model-that-is-nowhere", "/a/folder"])
def test_the_name_of_a_base_is_never_looked_up(
    client: LoraplexClient, copy_of_red: Path, base_name: str | None
) -> None:
    """LoRAX #430: ten seconds until the first token, for a base_model_name_or_path that was null.

    Shapes and fingerprints decide what fits a base; what a trainer called it is a note.
    """
    config = json.loads((copy_of_red / CONFIG).read_text())
    (copy_of_red / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": base_name}))

    registered = client.adapters.create("noted", copy_of_red)

    assert registered.digest == client.adapters.get("red").digest
    client.adapters.delete("noted")
