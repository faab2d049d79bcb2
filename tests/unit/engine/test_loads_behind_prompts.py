"""Adapters come into their slots, and stay there, while the steps are full of others' requests."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from loraplex_adapters.base_spec import LORA_MODULES, BaseSpec
from loraplex_server.engine.adapter_loader import HostPlace
from loraplex_server.engine.adapter_residency import AdapterResidency
from loraplex_server.engine.block_manager import BlockManager
from loraplex_server.engine.host_cache import HostCache
from loraplex_server.engine.messages import SamplingParams
from loraplex_server.engine.prefill_budget import PrefillSpread
from loraplex_server.engine.scheduled_batch import SampledToken
from loraplex_server.engine.scheduler import Scheduler, SchedulerLimits
from tests.unit.engine.simulation import EOS, add_command
from tests.unit.engine.slow_memory import SlowMemory

SPEC = BaseSpec("LlamaForCausalLM", "f" * 64, 1, dict.fromkeys(LORA_MODULES, (4, 4)))
ELEMENTS = 8  # of every adapter
ENDLESS = SamplingParams(max_tokens=10_000, ignore_eos=True)
PROMPT_STEPS = 20
NUM_BLOCKS = 1000


def read(digest: str, place: HostPlace) -> None:
    place.begin(ELEMENTS, {(0, "q_proj"): 1}).fill_(float(ord(digest)))


class Steps:
    """A scheduler over a real residency, as the engine runs them."""

    def __init__(self, num_slots: int, max_running: int = 50) -> None:
        memory = SlowMemory(8 * ELEMENTS, SPEC)
        cache = HostCache(8 * ELEMENTS, torch.float32, pin_memory=False)
        self.memory = memory
        self.residency = AdapterResidency(num_slots, memory, cache, read, copy_bytes=2**20)
        limits = SchedulerLimits(max_running, 1000, 10_000, PrefillSpread(PROMPT_STEPS, 1))
        blocks = BlockManager(NUM_BLOCKS, 4)
        self.scheduler = Scheduler(limits, blocks, self.residency, [EOS])
        self._num_sequences = 0

    def add(self, num_tokens: int, digest: str | None = None) -> int:
        """A request with a prompt of so many tokens; its id."""
        self._num_sequences += 1
        prompt = [self._num_sequences] * num_tokens
        self.scheduler.add(add_command(self._num_sequences, prompt, digest=digest, sampling=ENDLESS))
        return self._num_sequences

    def step(self) -> set[int]:
        """Who was in the step."""
        self.residency.advance()
        batch = self.scheduler.schedule()
        self.residency.copy(is_idle=False)
        self.memory.land()
        if batch is None:
            return set()
        rows = [*batch.decodes, *batch.prefills]
        self.scheduler.commit(batch, [SampledToken(1) for row in rows if row.is_last_chunk])
        return {row.sequence.sequence_id for row in rows}

    def step_until_in(self, sequence_id: int) -> None:
        deadline_s = time.monotonic() + 30
        while sequence_id not in self.step():
            assert time.monotonic() < deadline_s
            time.sleep(0.0005)

    def await_read(self, digest: str) -> None:
        """Without a step."""
        deadline_s = time.monotonic() + 30
        while self.residency.tier(digest) == "disk":
            assert time.monotonic() < deadline_s
            time.sleep(0.0005)

    def load(self, digest: str) -> None:
        """Served once, then idle."""
        sequence_id = self.add(1, digest)
        self.step_until_in(sequence_id)
        self.scheduler.abort([sequence_id])


@pytest.fixture
def steps() -> Iterator[Steps]:
    made = Steps(num_slots=1)
    yield made
    made.residency.close()


@pytest.fixture
def steps_of_one() -> Iterator[Steps]:
    """With room for one sequence."""
    made = Steps(num_slots=1, max_running=1)
    yield made
    made.residency.close()


def test_an_adapter_is_read_from_the_moment_its_request_is_queued_whoever_is_before_it(
    steps_of_one: Steps,
) -> None:
    steps_of_one.add(1)
    steps_of_one.step()

    steps_of_one.add(1, "a")

    steps_of_one.await_read("a")


def test_an_adapter_stays_in_its_slot_while_any_request_waits_for_it(steps_of_one: Steps) -> None:
    steps = steps_of_one
    steps.load("c")
    steps.load("a")
    first, second = steps.add(1, "a"), steps.add(1, "a")
    assert steps.step() == {first}

    steps.residency.warm("c")
    steps.scheduler.abort([first])

    assert steps.step() == {second}


def test_an_adapter_of_a_request_that_waits_for_blocks_stays_in_its_slot(steps: Steps) -> None:
    steps.load("c")
    steps.load("a")
    steps.add(4 * NUM_BLOCKS - 100)
    for _ in range(5):
        steps.step()
    large = steps.add(400, "a")
    for _ in range(3):
        assert large not in steps.step()

    steps.residency.warm("c")

    for _ in range(3):
        steps.step()
        assert steps.residency.active_digests == ["a"]


def test_an_adapter_is_in_its_slot_when_the_prompt_before_its_request_ends(steps: Steps) -> None:
    steps.add(1)
    steps.step()
    long = steps.add(10 * PROMPT_STEPS)
    assert long in steps.step()
    request = steps.add(1, "a")
    steps.await_read("a")

    for _ in range(3):
        assert request not in steps.step(), "the prompt takes all that a step has for it"

    assert steps.residency.tier("a") == "slot"
    steps.step_until_in(request)


def test_an_adapter_that_an_earlier_request_waits_for_stays_in_its_slot(steps: Steps) -> None:
    steps.load("a")
    steps.add(1)
    steps.step()
    first, long, second = steps.add(1, "a"), steps.add(10 * PROMPT_STEPS), steps.add(1, "a")
    assert steps.step() >= {first, long}
    steps.scheduler.abort([first])
    steps.add(1, "c")
    steps.await_read("c")

    for _ in range(3):
        assert second not in steps.step(), "the prompt takes all that a step has for it"

    assert steps.residency.active_digests == ["a"]
    steps.step_until_in(second)
