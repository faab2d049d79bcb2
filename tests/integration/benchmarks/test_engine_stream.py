"""Which requests `benchmarks.engine_stream` makes: how long, over which adapters, and what is resident before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import engine_stream
from benchmarks.engine_runs import Bench
from benchmarks.engine_stream import FEW, MANY, REQUESTS, RESIDENT, make_resident
from loraplex_server.engine.messages import AddSequence, EngineStats, FinishReason, StepOutputs, TokenOutput


class FakeEngine:
    """Gives every sequence a token a step, and remembers what was asked for."""

    def __init__(self) -> None:
        self.asked: list[AddSequence] = []
        self.most_at_once = 0
        self._left: dict[int, int] = {}

    def add(self, command: AddSequence) -> None:
        self.asked.append(command)
        self._left[command.sequence_id] = command.sampling.max_tokens
        self.most_at_once = max(self.most_at_once, len(self._left))

    def has_work(self) -> bool:
        return bool(self._left)

    def step(self) -> StepOutputs:
        self._left = {sequence_id: left - 1 for sequence_id, left in self._left.items()}
        ended = {sequence_id for sequence_id, left in self._left.items() if not left}
        outputs = [
            TokenOutput(sequence_id, [1], FinishReason.LENGTH if sequence_id in ended else None)
            for sequence_id in self._left
        ]
        for sequence_id in ended:
            del self._left[sequence_id]
        return StepOutputs(outputs=outputs, stats=EngineStats())


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def bench(engine: FakeEngine) -> Bench:
    """All of a bench but its weights."""
    bench: Any = Bench.__new__(Bench)
    bench.engine, bench.decoder_config = engine, SimpleNamespace(vocab_size=32_000)
    made: Bench = bench
    return made


def lengths(engine: FakeEngine) -> list[int]:
    return [command.sampling.max_tokens for command in engine.asked]


def test_clients_that_begin_apart_end_one_after_another_evenly_over_one_output(
    bench: Bench, engine: FakeEngine
) -> None:
    bench.stream(12, 4, ["a"], 1.0, 3, 10, apart=True)

    assert lengths(engine) == [3, 5, 8, 10] + [10] * 8
    assert engine.most_at_once == 4


def test_clients_that_begin_together_ask_for_as_much_each(bench: Bench, engine: FakeEngine) -> None:
    result = bench.stream(12, 4, ["a"], 1.0, 3, 10)

    assert lengths(engine) == [10] * 12
    assert {len(command.prompt_token_ids) for command in engine.asked} == {3}
    assert result.tokens_per_second > 0


def test_what_is_asked_for_most_is_used_last(bench: Bench, engine: FakeEngine) -> None:
    make_resident(bench, ["most", "less", "least"])

    assert [command.adapter_digest for command in engine.asked] == ["least", "less", "most"]
    assert engine.most_at_once == 1, "one that is loaded must not begin behind one that is there"
    assert {(len(command.prompt_token_ids), command.sampling.max_tokens) for command in engine.asked} == {
        (8, 2)
    }


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("num_adapters", [FEW, MANY])
def test_a_stream_begins_with_the_adapters_resident_that_are_asked_for_most(
    bench: Bench, engine: FakeEngine, num_adapters: int, apart: bool
) -> None:
    """A warm-up by the stream's own draws would make those resident that it begins with."""
    engine_stream.run(bench, num_adapters, apart=apart)

    asked = [command.adapter_digest for command in engine.asked]
    before, measured = asked[:-REQUESTS], asked[-REQUESTS:]
    resident = min(num_adapters, RESIDENT)
    assert before[-resident:] == [f"16-{number}" for number in reversed(range(resident))]
    assert set(before) == {f"16-{number}" for number in range(resident)}
    assert len(set(measured)) >= resident
