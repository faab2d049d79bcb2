"""Adapters come, go, are moved, pinned and warmed around running requests, and nobody's tokens show it."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from loraplex_server.adapter_image import image_path
from loraplex_server.engine.model_runner import ModelRunner
from loraplex_server.engine.scheduled_batch import ScheduledBatch
from loraplex_server.engine.slot_turns import MAX_BYPASSES
from loraplex_server.model.batch import ForwardBatch
from tests.integration.engine.conftest import COMPLETION_TOKENS, Case
from tests.integration.engine.run import EngineRun
from tests.integration.engine.test_faults import add_all, assert_right, floats_of
from tests.integration.engine.world import ADAPTERS, World, start_engine


def step_until(run: EngineRun, is_so: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_so():
        if run.step() is None:
            time.sleep(0.0005)
        assert time.monotonic() < deadline_s, "it never came so far"


def move_one_that_runs(run: EngineRun, world: World, cases: list[Case]) -> list[Case]:
    """Let the largest find room only where a small one in the middle of the arena moves; returns what was asked.

    Which adapters lie where when requests come as they like is a matter of how quickly packages are read.
    """
    small, large = (
        next(case for case in cases if case.adapter == adapter) for adapter in ("rank-2", "rank-16")
    )
    run.load(world.digests["patterns"], world.digests["rank-2"])
    run.engine.forget_adapter(world.digests["patterns"])  # a gap in front of the small one, another behind it
    asked = [small, large]
    add_all(run, world, asked)

    def is_there() -> bool:
        if all(completion.end is not None for completion in run.completions if completion is not awaited):
            asked.append(small)  # in use without a break, so that it is moved and not evicted
            add_all(run, world, [small])
        return bool(awaited.tokens)

    awaited = run.completions[1]
    step_until(run, is_there)
    assert run.totals.compacted_bytes > 0
    return asked


@pytest.mark.parametrize("copy_bytes", [512, 2**20])
def test_tokens_are_the_same_while_adapters_are_evicted_and_moved_together(
    world: World, cases: list[Case], copy_bytes: int
) -> None:
    # Two of the largest do not fit, and what does fit leaves gaps of many sizes.
    arena = 4 * (floats_of(world, "rank-16") + floats_of(world, "patterns"))
    with EngineRun(
        start_engine(
            world,
            adapter_arena_bytes=arena,
            adapter_copy_bytes=copy_bytes,
            host_cache_bytes=arena,
            max_running=5,
        )
    ) as run:
        moved = move_one_that_runs(run, world, cases)
        order = random.Random(4).sample(cases * 3, 3 * len(cases))
        add_all(run, world, order)

        assert_right(run.finish(timeout_s=120), moved + order)

        assert run.totals.adapter_evictions > 0
        run.assert_nothing_is_left(*world.digests.values())


def test_a_restarted_engine_reads_images_and_says_the_same(
    world: World, cases: list[Case], tmp_path: Path
) -> None:
    own = replace(world, store=tmp_path / "store")
    shutil.copytree(world.store, own.store)
    with EngineRun(start_engine(own)) as run:
        run.load(*own.digests.values())
        layout = run.engine.ready.adapter_layout
    for digest in own.digests.values():
        assert image_path(tmp_path / "images", layout, digest).is_file()
    shutil.rmtree(own.store)

    with EngineRun(start_engine(own)) as run:
        add_all(run, own, cases)
        assert_right(run.finish(), cases)


def test_a_warmed_adapter_is_there_before_its_first_request(world: World, cases: list[Case]) -> None:
    case = next(case for case in cases if case.adapter == "rslora")
    digest = world.digests["rslora"]
    with EngineRun(start_engine(world)) as run:
        run.engine.warm_adapter(digest)
        assert run.engine.is_loading
        run.settle()
        assert run.tiers == {digest: "slot"}

        add_all(run, world, [case])
        run.step()

        assert run.completions[0].tokens == case.expected[:1]


def test_steps_of_the_base_alone_do_no_lora_work_however_many_adapters_are_resident(
    world: World, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM #9143: --enable-lora alone, with no adapter in use, cut decoding from 27 to 5 tokens/s."""
    adapted: list[bool] = []
    forward_batch = ModelRunner._forward_batch

    def watched(runner: ModelRunner, batch: ScheduledBatch) -> ForwardBatch:
        made = forward_batch(runner, batch)
        adapted.append(made.lora is not None)
        return made

    monkeypatch.setattr(ModelRunner, "_forward_batch", watched)
    of_the_base = [case for case in cases if case.adapter is None]
    with EngineRun(start_engine(world)) as run:
        run.load(*world.digests.values())
        assert all(adapted)
        adapted.clear()
        add_all(run, world, of_the_base)

        assert_right(run.finish(), of_the_base)

    assert adapted
    assert not any(adapted)


def test_pinned_adapters_stay_while_others_take_turns(world: World, cases: list[Case]) -> None:
    pinned = world.digests["rank-2"]
    with EngineRun(start_engine(world, adapter_slots=2)) as run:
        run.engine.pin_adapters([pinned])
        run.settle()
        add_all(run, world, cases)
        deadline_s = time.monotonic() + 60
        while run.engine.has_work():
            run.step()
            assert run.tiers[pinned] == "slot"
            assert time.monotonic() < deadline_s

        assert_right(run.completions, cases)
        run.assert_nothing_is_left(*world.digests.values())


def test_an_adapter_that_cannot_be_pinned_or_warmed_is_told_with_its_reason(world: World) -> None:
    with EngineRun(start_engine(world)) as run:
        run.engine.pin_adapters([world.damaged["cut"], world.digests["rank-2"]])
        run.engine.warm_adapter(world.damaged["missing"])
        run.settle()

        failures = {failure.digest: failure.reason for failure in run.totals.load_failures}
        assert failures == {
            world.damaged["cut"]: "ADAPTER_UNAVAILABLE",
            world.damaged["missing"]: "ADAPTER_UNAVAILABLE",
        }
        assert run.tiers == {world.digests["rank-2"]: "slot"}
        run.assert_nothing_is_left(*world.digests.values(), *world.damaged.values())


def test_a_hot_adapter_cannot_keep_a_cold_one_from_the_only_slot(world: World, cases: list[Case]) -> None:
    hot = next(case for case in cases if case.adapter == "rank-16")
    cold = next(case for case in cases if case.adapter == "rank-2")
    with EngineRun(start_engine(world, adapter_slots=1, max_running=4)) as run:
        for _ in range(4):
            run.add(hot.prompt, world.digest(hot.adapter), max_tokens=COMPLETION_TOKENS)
        step_until(run, lambda: run.completions[3].tokens)
        number = run.add(cold.prompt, world.digest(cold.adapter), max_tokens=COMPLETION_TOKENS)
        while run.completions[number].end is None:
            waiting = sum(completion.end is None for completion in run.completions)
            if waiting < 8:  # there are always some that could start
                run.add(hot.prompt, world.digest(hot.adapter), max_tokens=COMPLETION_TOKENS)
            if run.step() is None:
                time.sleep(0.0005)
            assert len(run.completions) < 4 * MAX_BYPASSES
        begun = [completion for completion in run.completions[number + 1 :] if completion.tokens]
        # Those that were being read and copied for are counted from the moment on when only the slot was missing.
        assert len(begun) <= 2 * MAX_BYPASSES

        for completion in run.finish():
            expected = cold.expected if completion is run.completions[number] else hot.expected
            assert completion.tokens == expected


def test_the_engine_says_how_adapters_are_held(world: World) -> None:
    with EngineRun(start_engine(world, host_cache_bytes=2**20)) as run:
        ready = run.engine.ready
        run.load(*world.digests.values())
        stats = run.engine.stats()

    assert ready.adapter_layout.startswith("cpu-1-float32-")
    assert ready.adapter_element_bytes == 4
    assert ready.adapter_arena_bytes == 4 * ready.adapter_arena_elements == 4 * 2**20
    assert ready.host_cache_bytes == 2**20
    assert stats.adapter_slots_used == len(ADAPTERS)
    held = 4 * sum(floats_of(world, adapter) for adapter in ADAPTERS)
    assert stats.arena_bytes_used == stats.host_cache_bytes_used == held
