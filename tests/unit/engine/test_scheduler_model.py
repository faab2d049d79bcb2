"""Whatever the interleaving, each sequence gets the tokens it would get alone, and nothing stays held."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from loraplex_server.engine.messages import AddSequence, FinishReason, SamplingParams
from loraplex_server.engine.prefill_budget import PrefillSpread
from loraplex_server.engine.scheduler import SchedulerLimits
from tests.unit.engine.simulation import FakeResidency, Simulation, add_command, naive_completion

BROKEN = "broken"
SAMPLING = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 24),
    min_tokens=st.integers(0, 3),
    ignore_eos=st.booleans(),
    stop_token_ids=st.sampled_from([(), (3,)]),
)
# Few tokens and few beginnings, so that prefixes are often shared.
PROMPTS = st.builds(
    lambda shared, own: [1, 2, 1, 2, 2, 1, 1, 1, 2, 2][:shared] + own,
    st.integers(0, 10),
    st.lists(st.integers(1, 2), min_size=1, max_size=6),
)


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come and go while tiny block pools force preemption and eviction."""

    @initialize(
        num_blocks=st.integers(2, 14),
        block_size=st.integers(1, 4),
        max_running=st.integers(1, 5),
        spare_tokens=st.integers(0, 8),
        max_context=st.sampled_from([17, 40]),
        num_slots=st.integers(1, 2),
        prefix_cache=st.booleans(),
        overlapped=st.booleans(),
        spread=st.builds(PrefillSpread, st.sampled_from([1, 2, 5]), st.integers(1, 3)),
    )
    def start(
        self,
        num_blocks: int,
        block_size: int,
        max_running: int,
        spare_tokens: int,
        max_context: int,
        num_slots: int,
        prefix_cache: bool,
        overlapped: bool,
        spread: PrefillSpread,
    ) -> None:
        residency = FakeResidency(num_slots, arrives_at_once=False, broken=frozenset({BROKEN}))
        limits = SchedulerLimits(max_running, max_running + spare_tokens, max_context, spread)
        self.sim = Simulation(
            num_blocks=num_blocks,
            block_size=block_size,
            limits=limits,
            residency=residency,
            prefix_cache=prefix_cache,
            overlapped=overlapped,
        )
        self.commands: dict[int, AddSequence] = {}

    @rule(
        prompt=PROMPTS,
        digest=st.sampled_from([None, None, "a", "b", "c", BROKEN]),
        salt=st.sampled_from([b"", b"tenant"]),
        sampling=SAMPLING,
    )
    def add(self, prompt: list[int], digest: str | None, salt: bytes, sampling: SamplingParams) -> None:
        command = add_command(len(self.commands), prompt, digest, salt, sampling)
        self.commands[command.sequence_id] = command
        self.sim.add(command)

    @rule(sequence_id=st.integers(0, 12))
    def abort(self, sequence_id: int) -> None:
        self.sim.abort([sequence_id])

    @rule(num_steps=st.integers(1, 6))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.sim.step()

    @rule()
    def adapters_arrive(self) -> None:
        self.sim.residency.arrive()

    @invariant()
    def tokens_are_a_beginning_of_the_naive_completion(self) -> None:
        for sequence_id, command in getattr(self, "commands", {}).items():
            expected, _ = self._naive(command)
            tokens = self.sim.tokens[sequence_id]
            assert tokens == expected[: len(tokens)]

    def teardown(self) -> None:
        if not hasattr(self, "sim"):
            return
        self.sim.run()
        assert self.sim.finished.keys() == self.commands.keys()
        for sequence_id, command in self.commands.items():
            self._check_end(sequence_id, command)
        assert self.sim.scheduler.num_running == self.sim.scheduler.num_waiting == 0
        assert self.sim.blocks.num_used == 0
        assert self.sim.residency.num_leases == 0

    def _check_end(self, sequence_id: int, command: AddSequence) -> None:
        output = self.sim.finished[sequence_id]
        if output.finish_reason is FinishReason.ABORT:
            return
        expected, reason = self._naive(command)
        if command.adapter_digest == BROKEN:
            expected, reason = [], FinishReason.ERROR
        assert (self.sim.tokens[sequence_id], output.finish_reason) == (expected, reason)
        assert (output.error_reason is not None) == (reason is FinishReason.ERROR)

    def _naive(self, command: AddSequence) -> tuple[list[int], FinishReason]:
        return naive_completion(command, self.sim.capacity, self.sim.limits.max_context_tokens)


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
