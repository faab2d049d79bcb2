"""A step on a GPU: what it gives beside its tokens, when it is on the host, and from when to when it is timed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from loraplex_server.engine import gpu_logprobs, gpu_runner
from loraplex_server.engine.engine import Engine
from loraplex_server.engine.gpu_runner import GpuRunner, GpuStep
from loraplex_server.engine.gpu_step_inputs import StepShape
from loraplex_server.engine.host_copy import to_host
from loraplex_server.engine.messages import TokenLogprob
from loraplex_server.engine.staging import Staging
from tests.integration.engine.run import EngineRun
from tests.integration.engine.world import World, make_world, start_engine
from tests.kernels.test_gpu_engine import PROMPTS, add, launched_graphs, start_gpu_engine, warmed_run

TOPS = (3, None, 0, 5, 3, None)  # of PROMPTS
NUM_TOKENS = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def logprobs_of(run: EngineRun, world: World) -> list[list[TokenLogprob]]:
    """Prompts come beside decodes, and all of them ask for something else."""
    sampling = {"max_tokens": NUM_TOKENS, "logit_bias": {7: 1.5}}
    for number, (prompt, top) in enumerate(zip(PROMPTS, TOPS, strict=True)):
        if number == 3:
            run.step()
        add(run, world, [prompt], top_logprobs=top, **sampling)
    return [completion.logprobs for completion in run.finish(timeout_s=120)]


@pytest.mark.parametrize("has_graphs", [False, True])
def test_log_probabilities_are_those_of_the_reference(
    world: World, device: torch.device, has_graphs: bool
) -> None:
    with EngineRun(start_engine(world)) as run:
        expected = logprobs_of(run, world)
    engine = start_gpu_engine(world, device, max_batched_tokens=64)
    if has_graphs:
        launched_graphs(engine)

    with warmed_run(engine, world) as run:
        found = logprobs_of(run, world)

    assert run.totals.steps_with_prefill_and_decode > 0
    assert [len(row) for row in found] == [0 if top is None else NUM_TOKENS for top in TOPS]
    for row, other, top in zip(found, expected, TOPS, strict=True):
        for one, reference in zip(row, other, strict=True):
            assert one.token_id == reference.token_id
            assert one.logprob == pytest.approx(reference.logprob, abs=1e-4)
            assert [token for token, _ in one.top] == [token for token, _ in reference.top]
            assert [p for _, p in one.top] == pytest.approx([p for _, p in reference.top], abs=1e-4)
            assert len(one.top) == top


class Recorded:
    """What a runner queues, by name and in order, and what it copies to the host."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, runner: GpuRunner) -> None:
        self.calls: list[str] = []
        self.on_host: list[Tensor] = []
        self._watch(monkeypatch, Staging, "upload")
        self._watch(monkeypatch, runner, "_forward")
        self._watch(monkeypatch, runner, "_mark")
        for module in (gpu_runner, gpu_logprobs):
            monkeypatch.setattr(module, "to_host", self._to_host)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        called = getattr(owner, name)

        def recorded(*arguments: Any) -> Any:
            self.calls.append(name)
            return called(*arguments)

        monkeypatch.setattr(owner, name, recorded)

    def _to_host(self, result: Tensor) -> Tensor:
        self.calls.append("to_host")
        self.on_host.append(to_host(result))
        return self.on_host[-1]


def step_in_flight(engine: Engine) -> GpuStep:
    assert engine._in_flight is not None
    step = engine._in_flight.step
    assert isinstance(step, GpuStep)
    return step


def runner_of(engine: Engine) -> GpuRunner:
    assert isinstance(engine._runner, GpuRunner)
    return engine._runner


def test_a_step_is_timed_behind_its_inputs_and_ends_when_all_of_it_is_on_the_host(
    world: World, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GpuRunner, "warm_up", lambda runner, on_progress: None)
    with EngineRun(start_gpu_engine(world, device)) as run:
        runner = runner_of(run.engine)
        recorded = Recorded(monkeypatch, runner)
        run.add([5, 6, 7], max_tokens=1, top_logprobs=2)
        run.add([8, 1], max_tokens=1)
        run.add([9, 3], max_tokens=1, top_logprobs=0)
        run.step()
        step = step_in_flight(run.engine)

        assert recorded.calls == ["upload", "_mark", "_forward", *["to_host"] * 5, "_mark"]
        held = [step._host_tokens, *(t for part in step._logprobs for t in (part.values, part.top_ids))]
        assert {id(tensor) for tensor in held} == {id(tensor) for tensor in recorded.on_host}
        assert not any(tensor.is_cuda for tensor in held)

        if device.type == "cuda":
            torch.cuda.synchronize()
        runner._sampled.fill_(1)  # as the next step would
        runner._workspace.logits.fill_(0.5)
        sampled = step.tokens()
        assert len({token.token_id for token in sampled}) > 1
        assert [token.logprob is None for token in sampled] == [False, True, False]
        for token in sampled:
            if token.logprob is not None and token.logprob.top:
                assert token.logprob.top[0] == (token.token_id, token.logprob.logprob)


class Moment:
    """On a device whose clock goes one second with each. Implements `torch.cuda.Event`."""

    def __init__(self, seconds: int, *, is_over: bool = True) -> None:
        self._seconds = seconds
        self._is_over = is_over

    def synchronize(self) -> None:
        """It was over at once."""

    def query(self) -> bool:
        return self._is_over

    def elapsed_time(self, later: Moment) -> float:
        return 1e3 * (later._seconds - self._seconds)


def test_what_the_device_waits_for_the_host_between_steps_is_idle_while_a_sequence_goes_on(
    world: World, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GpuRunner, "warm_up", lambda runner, on_progress: None)
    with EngineRun(start_gpu_engine(world, device)) as run:
        clock = 0

        def mark() -> Moment:
            nonlocal clock
            clock += 1
            return Moment(clock)

        upload = Staging.upload

        def late_upload(staging: Staging, num_bytes: int) -> None:
            nonlocal clock
            clock += 10
            upload(staging, num_bytes)

        monkeypatch.setattr(runner_of(run.engine), "_mark", mark)
        monkeypatch.setattr(Staging, "upload", late_upload)
        stats = []
        for _ in range(2):  # the second comes when the first is gone
            run.add([5, 6, 7], max_tokens=3)
            while run.engine.has_work():
                stats.append(run.step())

    done = [one for one in stats if one is not None and one.batch_sequences]
    assert [one.step_seconds for one in done] == [1.0] * 6
    assert [one.device_idle_seconds for one in done] == [None, 11.0, 11.0] * 2


@pytest.mark.parametrize("is_busy", [False, True])
def test_a_graph_that_the_host_launches_late_leaves_the_device_idle_unless_it_was_busy(
    world: World, device: torch.device, monkeypatch: pytest.MonkeyPatch, is_busy: bool
) -> None:
    """Whether it was: had it reached the step's start when the launch was over?"""
    monkeypatch.setattr(GpuRunner, "warm_up", lambda runner, on_progress: None)
    with EngineRun(start_gpu_engine(world, device)) as run:
        graphs = launched_graphs(run.engine)
        device_clock, host_clock = 0, 0.0

        def mark() -> Moment:
            nonlocal device_clock
            device_clock += 1
            return Moment(device_clock, is_over=not is_busy)

        replay = graphs.replay

        def late(shape: StepShape) -> Tensor:
            nonlocal device_clock, host_clock
            host_clock += 100.0
            device_clock += 0 if is_busy else 100
            return replay(shape)

        monkeypatch.setattr(runner_of(run.engine), "_mark", mark)
        monkeypatch.setattr(graphs, "replay", late)
        monkeypatch.setattr(gpu_runner, "perf_counter", lambda: host_clock)
        run.add([5, 6, 7], max_tokens=3)
        stats = []
        while run.engine.has_work():
            stats.append(run.step())

    done = [one for one in stats if one is not None and one.batch_sequences]
    assert [one.step_seconds for one in done] == [1.0] * 3
    assert [one.device_idle_seconds for one in done] == [None, *[1.0 if is_busy else 101.0] * 2]
