"""What a live step launches was launched, and so compiled, when the engine started; found out without a compiler."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from loraplex_server.engine import gpu_step_inputs, graph_shapes
from loraplex_server.engine.gpu_runner import GpuRunner
from loraplex_server.engine.gpu_step_inputs import StepPlan, StepShape
from loraplex_server.kernels import lora_tables
from loraplex_server.model.numerics import ResolvedQuantization
from tests.integration.engine.run import EngineRun
from tests.integration.engine.world import VOCAB_SIZE, World, make_world
from tests.kernels.test_gpu_engine import CHANGES, launched_graphs, start_gpu_engine

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="needs the interpreter; a GPU has its own test in test_gpu_engine.py"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("max_running", [1, 2, 4])
@pytest.mark.parametrize("quantization", ["bf16", "int8"])
def test_no_step_launches_what_the_start_did_not(
    world: World,
    device: torch.device,
    quantization: ResolvedQuantization,
    max_running: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Steps of each kind: decodes, prompts beside them and alone, in graphs and too long for one, of one adapter, of
    several and of none; greedy and sampled, with all that requests can ask for.
    """
    variants: set[tuple[str, ...]] = set()
    without_graph: list[StepShape] = []
    watch_launches(monkeypatch, variants)
    monkeypatch.setattr(graph_shapes, "_MIXED_ROW_BUCKETS", (32,))
    monkeypatch.setattr(graph_shapes, "_PROMPT_ROWS", 1)
    monkeypatch.setattr(lora_tables, "SMALL_TILES_UP_TO", 32)
    monkeypatch.setattr(gpu_step_inputs, "DENSE_ROWS", 33)  # of one adapter, which no graph holds
    exact_shape = GpuRunner._exact_shape
    engine = start_gpu_engine(
        world, device, quantization=quantization, max_batched_tokens=64, max_running=max_running
    )
    runner = engine._runner
    assert isinstance(runner, GpuRunner)
    graphs = launched_graphs(engine)
    runner._launch_everything(lambda done, total: None)
    at_the_start = set(variants)
    variants.clear()
    graphs.replayed.clear()

    def watched(runner: GpuRunner, plan: StepPlan) -> StepShape:
        without_graph.append(exact_shape(runner, plan))
        return without_graph[-1]

    monkeypatch.setattr(GpuRunner, "_exact_shape", watched)
    tokens = cycle(range(3, VOCAB_SIZE))  # of prompts that share no prefix with the one before
    with EngineRun(engine) as run:
        for adapters in ((None,), ("rank-16",), ("rank-16", None)):
            for length in (3, 20, 40):
                for num_decodes in range(max_running):
                    for _ in range(num_decodes):
                        run.add([next(tokens)], max_tokens=9)
                    run.step()
                    for adapter in adapters:
                        run.add([next(tokens)] * length, world.digest(adapter), max_tokens=2)
                    run.finish(timeout_s=120)
        for changes in CHANGES:
            run.add(
                [5, 6, 7], world.digest("rslora"), max_tokens=2, temperature=1.0, top_logprobs=2, **changes
            )
            run.finish(timeout_s=120)

    assert {shape.sole_slot is None for shape in without_graph} == {True, False}
    assert graphs.replayed
    assert variants - at_the_start == set()


def watch_launches(monkeypatch: pytest.MonkeyPatch, variants: set[tuple[str, ...]]) -> None:
    """Adds to `variants` what each launch would be compiled for, and launches nothing: every token is what it was."""

    def watched(function: InterpretedFunction[Any], *arguments: Any, **settings: Any) -> None:
        constants = (
            f"{name}={value}" for name, value in sorted(settings.items()) if name not in ("grid", "warmup")
        )
        variants.add((function.__name__, *map(specialised, arguments), *constants))

    monkeypatch.setattr(InterpretedFunction, "run", watched)


def specialised(argument: object) -> str:
    """What Triton compiles a kernel for: types, and which pointers and numbers are multiples of 16."""
    if isinstance(argument, Tensor):
        return f"{argument.dtype}, aligned: {argument.data_ptr() % 16 == 0}"
    if isinstance(argument, int):
        return "1" if argument == 1 else f"integer, of 16: {argument % 16 == 0}"
    return type(argument).__name__
