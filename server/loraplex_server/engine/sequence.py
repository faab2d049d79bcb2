"""The running state of one request."""

from __future__ import annotations

from dataclasses import dataclass, field

from loraplex_server.engine.messages import AddSequence, SamplingParams, SequenceTimings

BASE_SLOT = -1
"""`adapter_slot` of a sequence that the base model answers itself."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Sequence:
    """Owned by the engine's thread. Tokens are those of the prompt followed by those generated."""

    sequence_id: int
    prompt_token_ids: list[int]
    adapter_digest: str | None
    cache_salt: bytes
    sampling: SamplingParams
    arrival_s: float
    order: int  # of admission; a preempted sequence returns to its place in the queue
    is_background: bool = False  # see AddSequence
    output_token_ids: list[int] = field(default_factory=list)
    num_pending_tokens: int = 0  # sampled by steps that are not committed yet: counted, but not known here
    num_computed_tokens: int = (
        0  # tokens whose keys and values are in the cache, or will be after the steps in flight
    )
    num_tokens_to_prefill: int = 0  # of the running sequence: those that were not in the cache when it began
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)  # of its first full blocks, as far as known
    adapter_slot: int = BASE_SLOT
    num_cached_prompt_tokens: int = 0
    num_preemptions: int = 0
    adapter_wait_started_s: float | None = None
    adapter_ready_s: float | None = None  # the end of that wait, even if blocks were short then
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    _token_counts: dict[int, int] | None = field(default=None, init=False, repr=False)
    _num_counted: int = field(default=0, init=False, repr=False)

    @classmethod
    def of(cls, command: AddSequence, order: int) -> Sequence:
        return cls(
            sequence_id=command.sequence_id,
            prompt_token_ids=command.prompt_token_ids,
            adapter_digest=command.adapter_digest,
            cache_salt=command.cache_salt,
            sampling=command.sampling,
            arrival_s=command.arrival_s,
            order=order,
            is_background=command.is_background,
        )

    @property
    def num_tokens(self) -> int:
        """Of prompt and completion, those pending included."""
        return len(self.prompt_token_ids) + self.num_output_tokens

    @property
    def num_output_tokens(self) -> int:
        """Of the completion, those pending included."""
        return len(self.output_token_ids) + self.num_pending_tokens

    @property
    def is_decoding(self) -> bool:
        """All tokens but the newest are computed."""
        return self.num_computed_tokens == self.num_tokens - 1

    def token_ids(self, start: int, stop: int) -> list[int]:
        """Tokens [start, stop) without joining the whole; pending ones are left out."""
        num_prompt = len(self.prompt_token_ids)
        if start >= num_prompt:
            return self.output_token_ids[start - num_prompt : stop - num_prompt]
        if stop <= num_prompt:
            return self.prompt_token_ids[start:stop]
        return self.prompt_token_ids[start:] + self.output_token_ids[: stop - num_prompt]

    def token_counts(self) -> dict[int, int]:
        """Distinct tokens so far -> occurrences in the completion. Counts on from the last call."""
        if self._token_counts is None:
            self._token_counts = dict.fromkeys(self.prompt_token_ids, 0)
        for token_id in self.output_token_ids[self._num_counted :]:
            self._token_counts[token_id] = self._token_counts.get(token_id, 0) + 1
        self._num_counted = len(self.output_token_ids)
        return self._token_counts

    def timings(self) -> SequenceTimings:
        """Where the time went; parts that never began are 0."""
        started = self.first_scheduled_s
        waiting, ready = self.adapter_wait_started_s, self.adapter_ready_s
        first, last = self.first_token_s, self.last_token_s
        return SequenceTimings(
            queue_s=started - self.arrival_s if started is not None else 0.0,
            adapter_load_s=ready - waiting if ready is not None and waiting is not None else 0.0,
            prefill_s=first - started if first is not None and started is not None else 0.0,
            decode_s=last - first if last is not None and first is not None else 0.0,
        )
