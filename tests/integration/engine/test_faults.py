"""What is wrong with one request, or with its adapter, ends that request and no other."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from loraplex_adapters.package import PackageLimits
from loraplex_adapters.store import PackageStore
from loraplex_server.base.fingerprint import base_spec
from loraplex_server.engine.adapter_loader import HostPlace
from loraplex_server.engine.messages import FinishReason
from loraplex_server.engine.store_reader import StoreReader
from tests.integration.engine.conftest import COMPLETION_TOKENS, Case
from tests.integration.engine.run import Completion, EngineRun
from tests.integration.engine.world import CONTEXT, World, save_adapter, start_engine

DAMAGES = ("changed", "cut", "emptied", "missing")


def add_all(run: EngineRun, world: World, cases: list[Case]) -> None:
    for case in cases:
        run.add(case.prompt, world.digest(case.adapter), max_tokens=COMPLETION_TOKENS)


def assert_right(completions: list[Completion], cases: list[Case]) -> None:
    for completion, case in zip(completions, cases, strict=True):
        assert completion.tokens == case.expected
        assert completion.finish_reason is FinishReason.LENGTH


def assert_failed(completion: Completion, reason: str, message: str) -> None:
    assert completion.end is not None
    assert completion.finish_reason is FinishReason.ERROR
    assert completion.tokens == []
    assert completion.end.error_reason == reason
    assert completion.end.error_message is not None
    assert message in completion.end.error_message
    assert completion.end.timings is not None


def floats_of(world: World, adapter: str) -> int:
    """Elements of the arena that an adapter takes: those of its A and B matrices."""
    return PackageStore(world.store).verify(world.digests[adapter]).size_bytes // 4


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_package_fails_only_the_requests_that_name_it(
    world: World, cases: list[Case], damage: str
) -> None:
    """vLLM #5105: one tenant's missing file ended the engine of all."""
    with EngineRun(start_engine(world)) as run:
        add_all(run, world, cases[:3])
        for _ in range(2):
            run.add([5, 6, 7], world.damaged[damage])
        add_all(run, world, cases[3:])

        completions = run.finish()

        assert_right(completions[:3] + completions[5:], cases)
        for completion in completions[3:5]:
            assert_failed(completion, "ADAPTER_UNAVAILABLE", "package")
        run.assert_nothing_is_left(*world.digests.values(), world.damaged[damage])


def test_a_load_that_fails_as_nobody_foresaw_fails_only_the_requests_that_name_its_adapter(
    world: World, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM #5105: one tenant's adapter ended the engine of all."""
    read = StoreReader.__call__

    def read_but_one(reader: StoreReader, digest: str, place: HostPlace) -> None:
        if digest == world.digests["rslora"]:
            raise KeyError("a bug")
        read(reader, digest, place)

    monkeypatch.setattr(StoreReader, "__call__", read_but_one)
    with EngineRun(start_engine(world)) as run:
        add_all(run, world, cases)

        for completion, case in zip(run.finish(), cases, strict=True):
            if case.adapter == "rslora":
                assert_failed(completion, "SEQUENCE_FAILED", "could not load the adapter")
            else:
                assert_right([completion], [case])
        run.assert_nothing_is_left(*world.digests.values())


def test_a_package_that_was_repaired_serves_the_next_request(world: World, tmp_path: Path) -> None:
    own = replace(world, store=tmp_path / "store")
    shutil.copytree(world.store, own.store)
    digest = world.damaged["cut"]
    with EngineRun(start_engine(own)) as run:
        run.add([5, 6, 7], digest)
        run.finish()
        PackageStore(own.store).put(world.store.parent / "cut")

        run.add([5, 6, 7], digest)
        run.finish()

        assert_failed(run.completions[0], "ADAPTER_UNAVAILABLE", "package")
        assert run.completions[1].finish_reason is FinishReason.LENGTH


def test_a_package_whose_files_are_those_of_another_adapter_is_not_served(
    world: World, tmp_path: Path
) -> None:
    own = replace(world, store=tmp_path / "store")
    shutil.copytree(world.store, own.store)
    wanted = own.store / world.digests["rank-2"]
    shutil.rmtree(wanted)
    shutil.copytree(own.store / world.digests["rslora"], wanted)
    with EngineRun(start_engine(own)) as run:
        run.add([5, 6, 7], world.digests["rank-2"])

        assert_failed(run.finish()[0], "ADAPTER_UNAVAILABLE", "was changed")


def test_an_adapter_bigger_than_the_arena_fails_alone(world: World, cases: list[Case]) -> None:
    bytes_for_all_but_the_largest = 4 * (floats_of(world, "rank-16") - 1)
    with EngineRun(start_engine(world, adapter_arena_bytes=bytes_for_all_but_the_largest)) as run:
        add_all(run, world, cases)

        run.finish()

        for completion, case in zip(run.completions, cases, strict=True):
            if case.adapter == "rank-16":
                assert_failed(completion, "ADAPTER_TOO_LARGE", "raise adapter_arena_bytes")
            else:
                assert_right([completion], [case])
        run.assert_nothing_is_left(*world.digests.values())


def test_adapters_that_do_not_fit_the_arena_together_are_served_in_turn(
    world: World, cases: list[Case]
) -> None:
    with EngineRun(start_engine(world, adapter_arena_bytes=4 * floats_of(world, "rank-16"))) as run:
        add_all(run, world, cases)

        assert_right(run.finish(), cases)
        assert run.totals.adapter_evictions > 0
        run.assert_nothing_is_left(*world.digests.values())


def test_a_rank_above_the_limit_fails_alone(world: World, cases: list[Case]) -> None:
    with EngineRun(start_engine(world, max_lora_rank=8)) as run:
        add_all(run, world, cases)

        for completion, case in zip(run.finish(), cases, strict=True):
            if case.adapter == "rank-16":
                assert_failed(completion, "ADAPTER_UNAVAILABLE", "rank 16 is above")
            else:
                assert_right([completion], [case])


def test_a_rank_up_to_the_limit_is_served_however_high_the_limit_is(world: World, tmp_path: Path) -> None:
    """vLLM #2847, gpustack #5438: a rank above a constant of the start."""
    own = replace(world, store=tmp_path / "store")
    folder = save_adapter(world.base, tmp_path / "wide", 7, {"r": 300, "target_modules": ["q_proj"]})
    digest = PackageStore(own.store, PackageLimits(max_rank=300)).put(folder).digest
    with EngineRun(start_engine(own, max_lora_rank=300)) as run:
        run.add([5, 6, 7], digest)

        assert run.finish()[0].finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_adapter_whose_answers_are_no_finite_numbers_fails_alone(
    world: World, cases: list[Case], tmp_path: Path, temperature: float
) -> None:
    """Its weights are: what overflows depends on the prompt."""
    own = replace(world, store=Path(shutil.copytree(world.store, tmp_path / "store")))
    fields = {"r": 2, "target_modules": ["down_proj"]}
    folder = save_adapter(world.base, tmp_path / "large", 7, fields, spread=1e30)
    digest = PackageStore(own.store).put(folder).digest
    with EngineRun(start_engine(own)) as run:
        add_all(run, own, cases[:4])
        run.add([5, 6, 7], digest, temperature=temperature, top_logprobs=1)
        add_all(run, own, cases[4:8])

        completions = run.finish()

        assert_failed(completions.pop(4), "ADAPTER_INVALID", "not finite numbers")
        assert_right(completions, cases[:8])
        run.assert_nothing_is_left(digest, *world.digests.values())


@pytest.mark.parametrize("quantization", ["fp32", "bf16", "int8", "nf4"])
def test_keys_that_are_no_numbers_harm_nobody_who_gets_their_blocks(
    world: World, tmp_path: Path, quantization: str
) -> None:
    """They lie beyond the context of the next holder, in a block that it has not filled yet."""
    own = replace(world, store=Path(shutil.copytree(world.store, tmp_path / "store")))
    fields = {"r": 2, "target_modules": ["down_proj", "k_proj", "v_proj"]}
    folder = save_adapter(world.base, tmp_path / "large", 7, fields, spread=1e30)
    digest = PackageStore(own.store).put(folder).digest
    prompts = [5, 6, 7], [9, 8], [11, 3, 2, 2, 1]
    with EngineRun(start_engine(own, quantization=quantization)) as run:
        for prompt in prompts:
            run.add(prompt, max_tokens=5)
        before = run.finish()
        for last in range(4):
            run.add([4] * 11 + [last], digest)
        failed = run.finish()[len(prompts) :]

        for prompt in prompts:
            run.add(prompt, max_tokens=5)
        after = run.finish()[len(prompts) + len(failed) :]

    for completion in failed:
        assert_failed(completion, "ADAPTER_INVALID", "not finite numbers")
    assert [completion.tokens for completion in after] == [completion.tokens for completion in before[:3]]


def test_a_prompt_longer_than_the_whole_cache_fails_alone(world: World, cases: list[Case]) -> None:
    with EngineRun(start_engine(world, num_blocks=16, max_running=4)) as run:  # 64 tokens
        add_all(run, world, cases[:4])
        run.add([9] * 65)
        add_all(run, world, cases[4:8])

        completions = run.finish()

        assert_failed(completions.pop(4), "CONTEXT_OVERFLOW", "longer than the whole key-value cache")
        assert_right(completions, cases[:8])
        run.assert_nothing_is_left(*world.digests.values())


def test_a_completion_that_outgrows_the_whole_cache_ends_in_an_error(world: World) -> None:
    with EngineRun(start_engine(world, num_blocks=16)) as run:
        run.add([9] * 50, max_tokens=CONTEXT - 50)

        completion = run.finish()[0]

        assert completion.end is not None
        assert completion.end.error_reason == "CONTEXT_OVERFLOW"
        assert len(completion.tokens) == 15  # the last of them needed no place
        run.assert_nothing_is_left()


def test_an_aborted_request_frees_all_it_holds_at_once(world: World) -> None:
    with EngineRun(start_engine(world)) as run:
        # While packages are read, the base's sequence could come to its end.
        run.load(world.digests["rank-2"], world.digests["rslora"])
        for adapter in (None, "rank-2", "rslora"):
            run.add([5, 6, 7, 8, 9], world.digest(adapter), max_tokens=60)
        while not all(completion.tokens for completion in run.completions):
            run.step()
        run.add([5, 6, 7], world.digest("patterns"))  # waits: no step has run since

        run.abort(0, 1, 2, 3, 99)

        run.assert_nothing_is_left(*world.digests.values())
        assert {completion.finish_reason for completion in run.completions} == {FinishReason.ABORT}


def test_a_request_that_ended_is_not_ended_again_by_an_abort(world: World) -> None:
    with EngineRun(start_engine(world)) as run:
        sequence_id = run.add([5, 6, 7], max_tokens=2)
        run.finish()

        run.abort(sequence_id)

        assert run.completions[0].finish_reason is FinishReason.LENGTH


def test_the_engine_says_what_it_loaded(world: World) -> None:
    engine = start_engine(world, num_blocks=20)
    ready = engine.ready
    engine.close()
    assert ready.base_fingerprint == base_spec(world.base).fingerprint
    assert (ready.num_blocks, ready.block_size, ready.max_context_tokens) == (20, 4, CONTEXT)
    assert (ready.architecture, ready.quantization, ready.device) == ("LlamaForCausalLM", "fp32", "cpu")
    assert ready.eos_token_ids == (2,)
    assert ready.weight_bytes == 4 * ready.parameter_count
