"""A world around the scheduler, small enough to check: a toy model, its paged cache, adapters that load."""

from __future__ import annotations

from hashlib import blake2b

from loraplex_adapters.errors import AdapterUnavailableError
from loraplex_server.engine.block_manager import BlockManager
from loraplex_server.engine.count_places import CountPlaces, seen_words
from loraplex_server.engine.messages import AddSequence, FinishReason, SamplingParams, TokenOutput
from loraplex_server.engine.scheduled_batch import SampledToken, ScheduledBatch, ScheduledSequence
from loraplex_server.engine.scheduler import Scheduler, SchedulerLimits
from loraplex_server.kernels.logit_changes import OCCURRENCE, SEEN

VOCAB_SIZE = 8
EOS = 0

CachedToken = tuple[bytes, str | None, int]  # whose keys and values: salt, adapter, token


def next_token(digest: str | None, tokens: list[int]) -> int:
    """The toy model: its answer depends on the adapter and on every token so far."""
    return blake2b(repr((digest, tokens)).encode(), digest_size=2).digest()[0] % VOCAB_SIZE


def add_command(
    sequence_id: int,
    prompt: list[int],
    digest: str | None = None,
    salt: bytes = b"",
    sampling: SamplingParams | None = None,
) -> AddSequence:
    return AddSequence(sequence_id, prompt, digest, salt, sampling or SamplingParams(), arrival_s=0.0)


class FakeResidency:
    """Slots and leases as the real one has, but packages arrive when the test says so."""

    def __init__(self, num_slots: int, *, arrives_at_once: bool = True, broken: frozenset[str] = frozenset()):
        self.num_slots = num_slots
        self.leases: dict[str, int] = {}
        self.slots: dict[str, int] = {}
        self.loading: set[str] = set()
        self.pinned: set[str] = set()
        self.is_pin_waiting = False
        self._arrives_at_once = arrives_at_once
        self._broken = broken

    def prefetch(self, digest: str) -> None:
        if not self._arrives_at_once and digest not in self.slots:
            self.loading.add(digest)

    def cancel_prefetch(self, digest: str) -> None:
        self.loading.discard(digest)

    def arrive(self) -> None:
        self.loading.clear()

    def is_loading(self, digest: str) -> bool:
        return digest in self.loading

    def is_pinned(self, digest: str) -> bool:
        return digest in self.pinned

    def acquire(self, digest: str) -> int | None:
        if digest in self.loading:
            return None
        if digest in self._broken:
            raise AdapterUnavailableError("the package is damaged")
        if digest not in self.slots:
            if len(self.slots) == self.num_slots:
                idle = next((d for d in self.slots if self.leases[d] == 0), None)
                if idle is None:
                    return None
                del self.slots[idle]
            self.slots[digest] = min(set(range(self.num_slots)) - set(self.slots.values()))
            self.leases[digest] = 0
        self.leases[digest] += 1
        return self.slots[digest]

    def bring(self, digest: str) -> None:
        """Packages arrive when the test says so."""

    def release(self, digest: str) -> None:
        assert self.leases[digest] > 0, "a lease is given back twice"
        self.leases[digest] -= 1

    @property
    def num_leases(self) -> int:
        return sum(self.leases.values())


class Simulation:
    """Runs the scheduler against the toy model, which sees a context only through the block table.

    With `overlapped`, each step is scheduled and run before the one ahead of it is committed, as on a GPU.
    """

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        limits: SchedulerLimits | None = None,
        residency: FakeResidency | None = None,
        prefix_cache: bool = True,
        overlapped: bool = False,
    ) -> None:
        self.limits = limits or SchedulerLimits(max_running=8, max_batched_tokens=16, max_context_tokens=1000)
        self.blocks = BlockManager(num_blocks, block_size, prefix_cache=prefix_cache)
        self.residency = residency or FakeResidency(num_slots=2)
        self.now = 0.0
        self.scheduler = Scheduler(self.limits, self.blocks, self.residency, [EOS], clock=lambda: self.now)
        self.tokens: dict[int, list[int]] = {}
        self.finished: dict[int, TokenOutput] = {}
        self.num_preempted = 0
        self.prefix_hit_tokens = 0
        self._cache: dict[tuple[int, int], CachedToken] = {}
        self._overlapped = overlapped
        self._in_flight: tuple[ScheduledBatch, list[SampledToken]] | None = None
        self._newest: dict[int, int] = {}  # what the device sampled last, by sequence
        self._places = CountPlaces(self.limits.max_running)
        self._counts: dict[int, dict[int, int]] = {}  # by place, as a GPU has them

    @property
    def capacity(self) -> int:
        """Tokens that the whole cache holds."""
        return self.blocks.num_blocks * self.blocks.block_size

    def add(self, command: AddSequence) -> None:
        self.tokens[command.sequence_id] = []
        self.scheduler.add(command)

    def abort(self, sequence_ids: list[int]) -> None:
        self._collect(self.scheduler.abort(sequence_ids))

    def step(self) -> ScheduledBatch | None:
        self.now += 1.0
        batch = self.scheduler.schedule()
        self._collect(self.scheduler.take_failures())
        if batch is not None:
            self.num_preempted += batch.num_preempted
            self.prefix_hit_tokens += batch.prefix_hit_tokens
            self._check_batch(batch)
        launched = None if batch is None else (batch, self._forward(batch))
        if self._overlapped:
            launched, self._in_flight = self._in_flight, launched
        if launched is not None:
            self._collect(self.scheduler.commit(*launched))
        self.blocks.check_invariants()
        return batch

    def has_work(self) -> bool:
        return self.scheduler.has_work() or self._in_flight is not None

    def run(self, max_steps: int = 2000) -> None:
        """Until all is done."""
        for _ in range(max_steps):
            if not self.has_work():
                return
            self.residency.arrive()
            self.step()
        raise AssertionError("the scheduler makes no progress")

    def _collect(self, outputs: list[TokenOutput]) -> None:
        for output in outputs:
            assert output.sequence_id not in self.finished, "an output after the end"
            self.tokens[output.sequence_id] += output.token_ids
            if output.finish_reason is not None:
                assert output.timings is not None
                self.finished[output.sequence_id] = output

    def _check_batch(self, batch: ScheduledBatch) -> None:
        rows = [*batch.decodes, *batch.prefills]
        assert 0 < batch.num_tokens <= self.limits.max_batched_tokens
        assert batch.num_tokens == sum(row.num_tokens for row in rows)
        assert self.scheduler.num_running <= self.limits.max_running
        assert len({id(row.sequence) for row in rows}) == len(rows) == batch.num_sequences
        assert all(row.num_tokens == 1 and row.is_last_chunk for row in batch.decodes)
        for part in (batch.decodes, batch.prefills):
            slots = [row.sequence.adapter_slot for row in part]
            assert slots == sorted(slots), "rows of one adapter are not adjacent"
        for row in rows:
            digest = row.sequence.adapter_digest
            assert row.sequence.adapter_slot == (-1 if digest is None else self.residency.slots[digest])
        for row in batch.prefills:
            assert row.sequence.num_pending_tokens == row.is_last_chunk, (
                "it begins without knowing its tokens"
            )

    def _forward(self, batch: ScheduledBatch) -> list[SampledToken]:
        rows = [*batch.decodes, *batch.prefills]
        for row in rows:  # what a row finds in the cache must have been put there by an earlier step
            self._check_cache(row, row.start)
        for row in rows:
            sequence = row.sequence
            for position, token in enumerate(self._tokens(row, row.start, row.stop), row.start):
                entry = (sequence.cache_salt, sequence.adapter_digest, token)
                self._cache[self._place(row, position)] = entry
        sampled = []
        contexts = []
        for row in rows:
            self._check_cache(row, row.stop)
            # The token that this step samples is pending already.
            assert row.is_last_chunk == (row.stop == row.sequence.num_tokens - row.is_last_chunk)
            if row.is_last_chunk:
                context = [self._cache[self._place(row, p)][2] for p in range(row.stop)]
                assert row.output_index == row.stop - len(row.sequence.prompt_token_ids)
                token = next_token(row.sequence.adapter_digest, context)
                self._newest[row.sequence.sequence_id] = token
                sampled.append(SampledToken(token))
                contexts.append(context)
        self._count([row for row in rows if row.is_last_chunk], contexts, sampled)
        return sampled

    def _count(
        self, rows: list[ScheduledSequence], contexts: list[list[int]], sampled: list[SampledToken]
    ) -> None:
        """As `GpuLogitChanges` does it: before anything is sampled, then behind it."""
        places = []
        for row, context in zip(rows, contexts, strict=True):
            place, is_new = self._places.of(row.sequence)
            if is_new:
                self._counts[place] = seen_words(row)
            num_prompt = len(row.sequence.prompt_token_ids)
            expected = {
                token: SEEN + OCCURRENCE * context[num_prompt:].count(token) for token in set(context)
            }
            assert self._counts[place] == expected, "penalties would not know what was said"
            places.append(place)
        assert len(set(places)) == len(places)
        for place, token in zip(places, sampled, strict=True):
            counts = self._counts[place]
            counts[token.token_id] = counts.get(token.token_id, SEEN) + OCCURRENCE

    def _tokens(self, row: ScheduledSequence, start: int, stop: int) -> list[int]:
        """Tokens [start, stop); one that is not committed yet is known to the device alone."""
        known = row.sequence.token_ids(start, stop)
        assert len(known) >= stop - start - 1
        return known if len(known) == stop - start else [*known, self._newest[row.sequence.sequence_id]]

    def _check_cache(self, row: ScheduledSequence, stop: int) -> None:
        sequence = row.sequence
        expected = [
            (sequence.cache_salt, sequence.adapter_digest, token) for token in self._tokens(row, 0, stop)
        ]
        assert [self._cache[self._place(row, p)] for p in range(stop)] == expected

    def _place(self, row: ScheduledSequence, position: int) -> tuple[int, int]:
        size = self.blocks.block_size
        return row.sequence.block_table[position // size], position % size


def naive_completion(command: AddSequence, capacity: int, max_context: int) -> tuple[list[int], FinishReason]:
    """What one sequence gives when it has the machine for itself."""
    tokens, sampling = list(command.prompt_token_ids), command.sampling
    output: list[int] = []
    while len(tokens) <= capacity:
        token = next_token(command.adapter_digest, tokens)
        tokens.append(token)
        output.append(token)
        if len(output) >= sampling.min_tokens and (
            (token == EOS and not sampling.ignore_eos) or token in sampling.stop_token_ids
        ):
            return output, FinishReason.STOP
        if len(output) >= sampling.max_tokens or len(tokens) >= max_context:
            return output, FinishReason.LENGTH
    return output, FinishReason.ERROR
