"""Which steps the engine calls continuations: before which a device that waits is idle though there was work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from loraplex_server.engine.messages import AddSequence, SamplingParams
from loraplex_server.engine.scheduled_batch import ScheduledBatch
from loraplex_server.engine.sequence import Sequence
from tests.unit.engine.simulation import add_command
from tests.unit.engine.test_step_wait import EngineWorld, WatchedStep


class ContinuationWorld(EngineWorld):
    """Notes each launch: whether it was a continuation."""

    def __init__(self) -> None:
        self.launches: list[bool] = []
        super().__init__(copy_units=8)
        self.engine.abort([1])
        while self.engine.has_work():
            self.engine.step()
        launch = self.device.launch

        def noted(batch: ScheduledBatch, *, is_continuation: bool) -> WatchedStep:
            self.launches.append(is_continuation)
            return launch(batch, is_continuation=is_continuation)

        self.device.launch = noted  # type: ignore[method-assign]

    def begin(self, sequence_id: int, max_tokens: int, **sampling: Any) -> None:
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, **sampling)
        self.engine.add(AddSequence(sequence_id, [1, 2, 3], None, b"", params, arrival_s=0.0))

    def finish(self) -> None:
        while self.engine.has_work():
            self.engine.step()


@pytest.fixture
def world() -> Iterator[ContinuationWorld]:
    world = ContinuationWorld()
    yield world
    world.engine.close()


def test_a_step_behind_one_in_flight_is_a_continuation_and_one_after_a_rest_is_not(
    world: ContinuationWorld,
) -> None:
    for sequence_id in (2, 3):
        world.begin(sequence_id, 3)
        world.finish()

    assert world.launches == [False, True, True] * 2


def test_a_sequence_whose_next_step_waits_for_its_token_goes_on_all_the_same(
    world: ContinuationWorld,
) -> None:
    world.begin(2, 3, presence_penalty=0.5)
    world.finish()

    assert world.launches == [False, True, True]


def test_a_sequence_that_takes_the_place_of_an_aborted_one_is_none(world: ContinuationWorld) -> None:
    world.begin(2, 3)
    world.engine.step()
    world.engine.abort([2])
    world.engine.step()
    world.begin(3, 1)
    world.finish()

    assert world.launches == [False, False]


def test_a_sequence_that_was_pushed_out_between_two_steps_did_not_go_on() -> None:
    sequence = Sequence.of(add_command(1, [4, 5]), order=0)
    batches = []
    for num_preemptions in (0, 0, 1):
        sequence.num_preemptions = num_preemptions
        batch = ScheduledBatch()
        batch.add(sequence, 2)
        batches.append(batch)

    assert batches[1].goes_on_from(batches[0])
    assert not batches[2].goes_on_from(batches[1])
    assert not ScheduledBatch().goes_on_from(batches[0])
