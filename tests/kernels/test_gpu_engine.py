"""The engine as a GPU runs it, step by step through the kernels, says what the engine on a CPU says."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from triton import knobs

from loraplex_adapters.store import PackageStore
from loraplex_server.base.fingerprint import base_spec
from loraplex_server.engine import gpu_step_inputs, graph_shapes, single_rows
from loraplex_server.engine.config import EngineConfig
from loraplex_server.engine.engine import Engine, EngineParts, store_reader
from loraplex_server.engine.gpu_backend import load_gpu_backend
from loraplex_server.engine.gpu_runner import GpuRunner, GpuStep
from loraplex_server.engine.gpu_step_inputs import StepInputs, StepShape
from loraplex_server.engine.kv_cache import block_bytes
from loraplex_server.engine.scheduled_batch import ScheduledBatch
from loraplex_server.engine.step_graphs import Forward, StepGraphs
from loraplex_server.kernels import decode_attention
from loraplex_server.kernels.lora_dense import lora_dense
from loraplex_server.model import gpu_decoder
from loraplex_server.model.config import DecoderConfig
from loraplex_server.model.footprint import decoder_bytes
from loraplex_server.model.numerics import ResolvedQuantization, resolve_numerics
from tests.integration.engine.run import EngineRun
from tests.integration.engine.world import BLOCK_SIZE, CONTEXT, World, make_world, save_adapter, start_engine

PROMPTS = (
    (None, [5, 6, 7]),
    ("rank-16", [9, 8, 7, 6, 5, 4, 3, 9, 9]),
    ("patterns", [11]),
    ("rslora", [30, 31, 32, 33, 34]),
    ("rank-16", [40, 41]),
    ("one-layer", list(range(20, 48))),  # does not fit a step beside the others: comes in two pieces
)
NUM_TOKENS = 4  # an interpreted step takes a second


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def start_gpu_engine(
    world: World,
    device: torch.device,
    *,
    num_blocks: int = 64,
    quantization: ResolvedQuantization = "fp32",
    **changes: Any,
) -> Engine:
    """The GPU's engine, in fp32 unless told otherwise; on a CPU its kernels are interpreted."""
    kv_bytes = num_blocks * block_bytes(DecoderConfig.from_folder(world.base), BLOCK_SIZE, torch.float32)
    settings: dict[str, Any] = {
        "max_context_tokens": CONTEXT,
        "max_batched_tokens": 32,
        "max_running": 8,
        "prefill_spread_steps": 1,  # what suits the device would cut steps otherwise on a GPU
        "block_size": BLOCK_SIZE,
        "kv_cache_bytes": kv_bytes,
        "adapter_slots": 4,
        "adapter_arena_bytes": 2**20,
        "max_lora_rank": 16,
    }
    config = EngineConfig(
        base_path=world.base,
        store_path=world.store,
        quantization=quantization,
        device="cpu",
        **{**settings, **changes},
    )
    dtype = torch.float32 if quantization == "fp32" else torch.bfloat16
    numerics = resolve_numerics(quantization, "cpu")
    numerics = replace(numerics, device=device, compute_dtype=dtype, kv_dtype=dtype)
    spec = base_spec(world.base)
    backend = load_gpu_backend(config, numerics, spec, lambda stage, done, total: None)
    return Engine(config, parts=EngineParts(backend, spec.fingerprint, store_reader(config, spec, backend)))


@contextmanager
def warmed_run(engine: Engine, world: World) -> Iterator[EngineRun]:
    """With all adapters in their slots, so that no step runs for some sequences while others wait for theirs."""
    with EngineRun(engine) as run:
        for adapter in {adapter for adapter, _ in PROMPTS if adapter is not None}:
            run.engine.warm_adapter(world.digests[adapter])
        run.settle()
        yield run


def add(
    run: EngineRun, world: World, prompts: Sequence[tuple[str | None, list[int]]], **sampling: Any
) -> None:
    for adapter, prompt in prompts:
        run.add(prompt, world.digest(adapter), **{"max_tokens": NUM_TOKENS, **sampling})


@pytest.fixture(scope="module")
def expected(world: World) -> list[list[int]]:
    """What the engine on a CPU says to PROMPTS."""
    with EngineRun(start_engine(world)) as run:
        add(run, world, PROMPTS)
        return [completion.tokens for completion in run.finish()]


def test_greedy_tokens_are_those_of_the_reference(
    world: World, device: torch.device, expected: list[list[int]]
) -> None:
    with warmed_run(start_gpu_engine(world, device), world) as run:
        add(run, world, PROMPTS)
        tokens = [completion.tokens for completion in run.finish(timeout_s=120)]
        run.assert_nothing_is_left(*world.digests.values())

    assert tokens == expected
    assert run.totals.steps_with_prefill_and_decode > 0
    assert run.totals.max_batch_adapters == 4


def test_a_prefill_of_one_adapter_through_plain_products_gives_the_reference_s_tokens(
    world: World, device: torch.device, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = set()

    def recorded(*arguments: Any) -> None:
        slots.add(arguments[3])
        lora_dense(*arguments)

    monkeypatch.setattr(GpuRunner, "warm_up", lambda runner, on_progress: None)  # no graphs, also on a GPU
    monkeypatch.setattr(gpu_step_inputs, "DENSE_ROWS", 2)
    monkeypatch.setattr(gpu_decoder, "lora_dense", recorded)
    alone = [1, 2, 3, 5]  # each adapter once

    with warmed_run(start_gpu_engine(world, device), world) as run:
        for number in alone:
            add(run, world, [PROMPTS[number]], max_tokens=2)
            completed = run.finish(timeout_s=120)
        tokens = [completion.tokens for completion in completed]

    assert tokens == [expected[number][:2] for number in alone]
    assert len(slots) == 3  # one of the four adapters is asked one token alone


class LaunchedGraphs(StepGraphs):
    """Graphs where there is no GPU: a replay launches the pass."""

    def __init__(self, runner: GpuRunner) -> None:
        super().__init__()
        self._runner = runner
        self._inputs: dict[StepShape, StepInputs] = {}
        self.replayed: list[StepShape] = []

    def __len__(self) -> int:
        return 1

    def capture(self, inputs: StepInputs, forward: Forward) -> None:
        self._inputs[inputs.shape] = inputs
        forward(inputs)

    def inputs(self, shape: StepShape) -> StepInputs:
        if shape not in self._inputs:
            self._inputs[shape] = StepInputs(shape, self._runner._staging, self._runner._tables)
        return self._inputs[shape]

    def replay(self, shape: StepShape) -> Tensor:
        self.replayed.append(shape)
        return self._runner._forward(self._inputs[shape])


def launched_graphs(engine: Engine) -> LaunchedGraphs:
    """Graphs for an engine that has none."""
    runner = engine._runner
    assert isinstance(runner, GpuRunner)
    graphs = runner._graphs = LaunchedGraphs(runner)
    return graphs


@pytest.mark.parametrize("part_tokens", [decode_attention.PART_TOKENS, 4])
def test_padded_steps_of_prefills_and_decodes_give_the_reference_s_tokens(
    world: World,
    device: torch.device,
    expected: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    part_tokens: int,
) -> None:
    """Attention of the decodes in one part, or in several, whose mean is written to rows of prefills too."""
    for module in (decode_attention, graph_shapes):
        monkeypatch.setattr(module, "PART_TOKENS", part_tokens)
    monkeypatch.setattr(single_rows, "MAX_READS", 0)
    engine = start_gpu_engine(world, device, max_batched_tokens=64)
    graphs = launched_graphs(engine)

    with warmed_run(engine, world) as run:
        add(run, world, PROMPTS[:3], max_tokens=3)
        run.step()
        add(run, world, PROMPTS[3:], max_tokens=3)
        tokens = [completion.tokens for completion in run.finish(timeout_s=120)]
        run.assert_nothing_is_left(*world.digests.values())

    assert tokens == [whole[:3] for whole in expected]
    assert run.totals.steps_with_prefill_and_decode > 0
    mixed = [shape for shape in graphs.replayed if shape.query_tiles]
    assert {shape.rows for shape in mixed} == {32, 64}
    assert all(shape.row_tiles for shape in mixed)
    assert {shape.max_context > part_tokens for shape in mixed} >= {part_tokens == 4}
    assert len(mixed) < len(graphs.replayed)


def test_prompts_spread_over_decode_steps_in_single_rows_give_the_reference_s_tokens(
    world: World, device: torch.device, expected: list[list[int]]
) -> None:
    engine = start_gpu_engine(
        world, device, max_batched_tokens=64, prefill_spread_steps=3, min_prefill_rows=2
    )
    graphs = launched_graphs(engine)

    with warmed_run(engine, world) as run:
        add(run, world, PROMPTS[:3])
        run.step()
        add(run, world, PROMPTS[3:], max_tokens=3)
        tokens = [completion.tokens for completion in run.finish(timeout_s=120)]
        run.assert_nothing_is_left(*world.digests.values())

    assert tokens == [*expected[:3], *(whole[:3] for whole in expected[3:])]
    assert run.totals.steps_with_prefill_and_decode > 1
    assert not any(shape.query_tiles for shape in graphs.replayed), "a step ran as a mixed one"
    assert any(shape.row_tiles for shape in graphs.replayed)


def test_what_the_prefix_cache_leaves_of_a_prompt_goes_in_single_rows_to_the_same_tokens(
    world: World, device: torch.device, expected: list[list[int]]
) -> None:
    engine = start_gpu_engine(world, device, prefill_spread_steps=4, min_prefill_rows=1)
    graphs = launched_graphs(engine)

    with warmed_run(engine, world) as run:
        add(run, world, [PROMPTS[5]], max_tokens=1)
        run.finish(timeout_s=120)
        add(run, world, [PROMPTS[0]])
        run.step()
        add(run, world, [PROMPTS[5]], max_tokens=2)
        completions = run.finish(timeout_s=120)

    assert [completion.tokens for completion in completions[-2:]] == [expected[0], expected[5][:2]]
    assert completions[-1].num_cached == (len(PROMPTS[5][1]) - 1) // BLOCK_SIZE * BLOCK_SIZE > 0
    assert run.totals.steps_with_prefill_and_decode == 3  # the last of four rows is a decode
    assert not any(shape.query_tiles for shape in graphs.replayed)


@pytest.mark.parametrize(("max_running", "max_reads"), [(1, single_rows.MAX_READS), (8, 400)])
def test_a_prompt_too_long_for_single_rows_goes_another_way_to_the_same_tokens(
    world: World,
    device: torch.device,
    expected: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    max_running: int,
    max_reads: int,
) -> None:
    """Its rows are too many, or read too much."""
    monkeypatch.setattr(single_rows, "MAX_READS", max_reads)
    monkeypatch.setattr(graph_shapes, "_PROMPT_ROWS", 24)
    engine = start_gpu_engine(world, device, max_running=max_running)
    graphs = launched_graphs(engine)
    long, short = PROMPTS[5], PROMPTS[1]

    with warmed_run(engine, world) as run:
        graphs.replayed.clear()
        for prompt in (long, short):
            add(run, world, [prompt], max_tokens=1)
            completions = run.finish(timeout_s=120)

    assert [completion.tokens for completion in completions[-2:]] == [expected[5][:1], expected[1][:1]]
    assert [bool(shape.query_tiles) for shape in graphs.replayed] == [True, False]


CHANGES: tuple[dict[str, Any], ...] = (
    {"repetition_penalty": 1.6},
    {"presence_penalty": 1.5, "frequency_penalty": 0.8},
    {},
    {"logit_bias": {7: 3.0, 20: -2.0}, "min_tokens": 3},
    {"repetition_penalty": 0.8, "logit_bias": {9: 1.0}, "min_tokens": 6, "stop_token_ids": (30,)},
    {"frequency_penalty": -0.5},
)


def test_penalties_bias_and_bans_give_the_reference_s_tokens(world: World, device: torch.device) -> None:

    def ask(run: EngineRun) -> list[list[int]]:
        for prompt, changes in zip(PROMPTS, CHANGES, strict=True):
            add(run, world, [prompt], max_tokens=7, **changes)
        return [completion.tokens for completion in run.finish(timeout_s=240)]

    with EngineRun(start_engine(world)) as reference:
        expected = ask(reference)
    with warmed_run(start_gpu_engine(world, device), world) as run:
        assert ask(run) == expected
        run.assert_nothing_is_left(*world.digests.values())


def test_a_sequence_with_penalties_goes_on_before_the_host_knows_its_newest_token(
    world: World, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = GpuRunner.launch
    continued: list[bool] = []

    def recorded(runner: GpuRunner, batch: ScheduledBatch, *, is_continuation: bool = False) -> GpuStep:
        continued.append(is_continuation)
        return launch(runner, batch, is_continuation=is_continuation)

    monkeypatch.setattr(GpuRunner, "launch", recorded)
    with EngineRun(start_gpu_engine(world, device)) as run:
        add(run, world, [PROMPTS[0]], presence_penalty=1.0, ignore_eos=True)
        run.finish(timeout_s=120)

    assert continued == [False] + [True] * (NUM_TOKENS - 1)


def test_an_adapter_whose_answers_are_no_finite_numbers_fails_alone(
    world: World, device: torch.device, expected: list[list[int]], tmp_path: Path
) -> None:
    own = replace(world, store=Path(shutil.copytree(world.store, tmp_path / "store")))
    fields = {"r": 2, "target_modules": ["down_proj"]}
    folder = save_adapter(world.base, tmp_path / "large", 7, fields, spread=1e30)
    digest = PackageStore(own.store).put(folder).digest
    with warmed_run(start_gpu_engine(own, device), own) as run:
        run.engine.warm_adapter(digest)
        run.settle()
        add(run, own, PROMPTS[:3])
        run.add([5, 6, 7], digest, max_tokens=NUM_TOKENS, presence_penalty=1.0, top_logprobs=1)
        *others, failed = run.finish(timeout_s=120)

    assert [completion.tokens for completion in others] == expected[:3]
    assert failed.tokens == []
    assert failed.end is not None
    assert failed.end.error_reason == "ADAPTER_INVALID"


def test_an_output_head_in_int8_gives_nearly_the_reference_s_log_probabilities(
    world: World, device: torch.device
) -> None:
    found = []
    config = DecoderConfig.from_folder(world.base)
    for int8_head in (False, True):
        engine = start_gpu_engine(world, device, int8_head=int8_head)
        planned = decoder_bytes(config, resolve_numerics("fp32", "cpu"), int8_head=int8_head)
        assert engine.ready.weight_bytes == planned
        with warmed_run(engine, world) as run:
            add(run, world, PROMPTS[:3], max_tokens=1, top_logprobs=3)
            found.append([completion.logprobs[0] for completion in run.finish(timeout_s=120)])

    for exact, rounded in zip(*found, strict=True):
        assert rounded.logprob == pytest.approx(exact.logprob, abs=0.05)
        assert rounded.logprob != exact.logprob, "the head is not in int8"


@pytest.mark.gpu
def test_no_step_meets_a_compiler_once_the_engine_has_started(world: World, device: torch.device) -> None:
    """Steps of each kind: decodes, prompts in single rows, beside decodes, too long for a graph; sampled and greedy;
    with everything that requests can ask for.
    """
    compiled: list[str] = []
    with warmed_run(start_gpu_engine(world, device, max_batched_tokens=4096), world) as run:
        knobs.runtime.jit_post_compile_hook = lambda **details: compiled.append(details["repr"])
        try:
            for temperature in (0.0, 1.0):
                add(run, world, PROMPTS, temperature=temperature)
                for changes in CHANGES:
                    add(run, world, PROMPTS[:1], temperature=temperature, top_logprobs=2, **changes)
                run.step()
                for count in (1, 3, 20):
                    add(run, world, [("rank-16", list(range(5, 45)) * 2)] * count, temperature=temperature)
                    run.step()
                run.finish(timeout_s=120)
        finally:
            knobs.runtime.jit_post_compile_hook = None

    assert compiled == []


def test_sequences_that_end_early_are_left_out_of_the_step_in_flight(
    world: World, device: torch.device, expected: list[list[int]]
) -> None:
    stop = expected[1][1]

    with warmed_run(start_gpu_engine(world, device), world) as run:
        add(run, world, PROMPTS[:3], stop_token_ids=(stop,))
        ended = run.finish(timeout_s=120)
        run.assert_nothing_is_left(*world.digests.values())

    assert ended[1].tokens == expected[1][:2]
    for completion, tokens in zip(ended, expected, strict=False):
        cut = tokens.index(stop) + 1 if stop in tokens else len(tokens)
        assert completion.tokens == tokens[:cut]


def test_an_engine_for_ranks_of_hundreds_says_what_the_reference_says(
    world: World, device: torch.device, expected: list[list[int]]
) -> None:
    with warmed_run(start_gpu_engine(world, device, max_lora_rank=256), world) as run:
        add(run, world, [PROMPTS[5]], max_tokens=2)
        (completion,) = run.finish(timeout_s=120)

    assert completion.tokens == expected[5][:2]
