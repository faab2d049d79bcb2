"""What is read of an adapter while a step runs is copied beside it, and the step's tokens are not kept waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from loraplex_server.engine.backend import Backend
from loraplex_server.engine.config import EngineConfig, ResidencySizes
from loraplex_server.engine.engine import Engine, EngineParts
from loraplex_server.engine.host_cache import HostCache
from loraplex_server.engine.messages import AddSequence, SamplingParams
from loraplex_server.engine.scheduled_batch import SampledToken, ScheduledBatch
from loraplex_server.engine.step_wait import StepWait
from tests.unit.engine.load_world import SPEC, UNIT, UNIT_BYTES, Disk
from tests.unit.engine.slow_memory import SlowMemory

LOOKS = 3  # until a step is over


class Time:
    """Passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


class TimedStep:
    """Takes `device_seconds` from when it is made. Implements `Step`."""

    idle_seconds = None

    def __init__(self, time: Time, device_seconds: float) -> None:
        self._time = time
        self.device_seconds = device_seconds
        self.ends = time.now + device_seconds

    @property
    def is_over(self) -> bool:
        return self._time.now >= self.ends

    def tokens(self) -> list[SampledToken]:
        self._time.now = max(self._time.now, self.ends)
        return []


class Copies:
    """Always or never something to copy; remembers when it was asked. Implements `Copying`."""

    def __init__(self, time: Time, *, has_some: bool) -> None:
        self.has_copies_to_queue = has_some
        self._time = time
        self.at: list[float] = []

    def copy_beside_step(self) -> None:
        self.at.append(self._time.now)


def run_steps(has_some: bool, *lengths: float) -> tuple[list[float], list[float]]:
    """Steps one behind the other: how late the tokens of each were taken, and how long before then the last copy was
    queued."""
    time = Time()
    copies = Copies(time, has_some=has_some)
    wait = StepWait(copies, clock=lambda: time.now, sleep=time.sleep)
    late, before = [], []
    for length in lengths:
        step = TimedStep(time, length)
        copies.at.clear()
        wait.tokens_of(step)
        late.append(time.now - step.ends)
        before.append(time.now - copies.at[-1] if copies.at else float("inf"))
    return late, before


def test_copies_go_on_until_shortly_before_the_step_ends() -> None:
    late, before = run_steps(True, 0.004, 0.004, 0.004, 0.0045)

    assert late == [0, 0, 0, 0]
    assert before[:2] == [float("inf")] * 2  # too little is known yet of how long steps are
    assert before[2] <= 0.0009
    assert before[3] <= 0.0014  # half a millisecond longer than was known


def test_a_step_that_is_shorter_than_those_before_it_is_hardly_kept_waiting() -> None:
    late, _ = run_steps(True, 0.1, 0.1, 0.004)

    assert late[2] <= 0.0005


def test_a_step_behind_one_with_a_prompt_is_not_kept_waiting_at_all() -> None:
    late, _ = run_steps(True, 0.004, 0.004, 0.0048, 0.004)

    assert late == [0, 0, 0, 0]


def test_without_anything_to_copy_nobody_sleeps_beside_a_step() -> None:
    late, before = run_steps(False, 0.004, 0.004, 0.004)

    assert late == [0, 0, 0]
    assert before == [float("inf")] * 3


class WatchedStep:
    """Over when it was looked at a few times. Implements `Step`."""

    device_seconds = 60.0
    idle_seconds = None

    def __init__(self, device: Device, num_tokens: int) -> None:
        self._device = device
        self._num_tokens = num_tokens
        self._num_looks = 0

    @property
    def is_over(self) -> bool:
        self._num_looks += 1
        self._device.while_it_runs()
        return self._num_looks > LOOKS

    def tokens(self) -> list[SampledToken]:
        self._device.before_tokens()
        return [SampledToken(7)] * self._num_tokens


class Device:
    """Runs ahead as a GPU does. Implements `StepRunner`."""

    overlaps = True

    def __init__(self) -> None:
        self.while_it_runs: Callable[[], None] = lambda: None
        self.before_tokens: Callable[[], None] = lambda: None

    def warm_up(self, on_progress: Callable[[int, int], None]) -> None:
        """Nothing."""

    def launch(self, batch: ScheduledBatch, *, is_continuation: bool) -> WatchedStep:
        rows = (*batch.decodes, *batch.prefills)
        return WatchedStep(self, sum(row.is_last_chunk for row in rows))


class EngineWorld:
    """A real engine on a device, a memory and a disk that the test steers; one stream decodes."""

    def __init__(self, copy_units: int) -> None:
        self.device, self.disk, self.memory = Device(), Disk(), SlowMemory(8 * UNIT, SPEC)
        sizes = ResidencySizes(16 * UNIT_BYTES, copy_units * UNIT_BYTES, load_threads=1, max_reads=1)
        backend = Backend(
            config=cast(Any, SimpleNamespace(eos_token_ids=(), architecture="none")),
            runner=self.device,
            adapter_memory=self.memory,
            adapter_cache=HostCache(16 * UNIT, torch.float32, pin_memory=False),
            adapter_layout="gpu-1-float32-0",
            residency_sizes=sizes,
            pack_adapter=cast(Any, None),
            num_blocks=64,
            max_batched_tokens=64,
            max_context_tokens=1000,
            quantization="bf16",
            quantization_reason="",
            device_type="cuda",
            weight_bytes=0,
            parameter_count=0,
            memory_plan="",
        )
        config = EngineConfig(base_path=Path("base"), store_path=Path("store"), adapter_slots=2)
        self.engine = Engine(config, parts=EngineParts(backend, "base", self.disk.read))
        self.add(1, None)
        for _ in range(3):  # of which the last one is in flight
            self.engine.step()

    def add(self, sequence_id: int, digest: str | None) -> None:
        sampling = SamplingParams(temperature=0.0, max_tokens=500, ignore_eos=True)
        self.engine.add(AddSequence(sequence_id, [1, 2, 3], digest, b"", sampling, arrival_s=0.0))


@pytest.fixture
def build() -> Iterator[Callable[[int], EngineWorld]]:
    built: list[EngineWorld] = []

    def build(copy_units: int) -> EngineWorld:
        built.append(EngineWorld(copy_units))
        return built[-1]

    yield build
    for world in built:
        for digest in list(world.disk.reading):
            world.disk.fail(digest)
        world.engine.close()


@pytest.mark.parametrize(("copy_units", "queued"), [(8, 4), (3, 3)])
def test_what_is_read_while_a_step_runs_is_queued_before_the_next_one_within_the_bound(
    build: Callable[[int], EngineWorld], copy_units: int, queued: int
) -> None:
    world = build(copy_units)
    world.add(2, "a")
    while not world.disk.reading:
        world.engine.step()
    world.disk.begin("a", 4)
    world.disk.fill("a", 1, 1.0)
    world.engine.step()
    assert world.memory.num_ahead == UNIT
    found: list[int] = []
    world.device.while_it_runs = lambda: world.disk.fill("a", 4, 1.0)
    world.device.before_tokens = lambda: found.append(world.memory.num_ahead)

    world.engine.step()

    assert found == [queued * UNIT]
