"""From a request to its events: admission, adapter lease, tokens, text. Knows nothing of gRPC."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import msgspec

from loraplex_adapters.errors import (
    AdapterUnavailableError,
    FieldViolation,
    InvalidRequestError,
)
from loraplex_adapters.names import AdapterReference
from loraplex_server.detokenizer import Detokenizer, StopStrings
from loraplex_server.engine.messages import (
    AddSequence,
    FinishReason,
    SamplingParams,
    SequenceTimings,
    TokenLogprob,
    TokenOutput,
)
from loraplex_server.engine_client import EngineClient, SequenceStream
from loraplex_server.engine_failures import raise_failure
from loraplex_server.errors import (
    ContextOverflowError,
    DeadlineExceededError,
    DrainingError,
    QueueFullError,
)
from loraplex_server.releases.directory import AdapterDirectory, Resolved
from loraplex_server.releases.shadowing import ServedTokens, ShadowRun, ShadowStarter, no_shadows
from loraplex_server.tokenizer import BaseTokenizer, ChatMessage, Prompt

DEFAULT_MAX_TOKENS = 256  # of a request that does not say
_INLINE_ENCODE_CHARACTERS = 2048  # longer prompts are tokenized in a thread
_MIN_RETRY_S, _MAX_RETRY_S = 0.1, 30.0
_SERVICE_TIME_WEIGHT = 0.1  # of the newest request in the running mean


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A validated request."""

    adapter: AdapterReference | None  # None: the base model
    prompt: Prompt
    sampling: SamplingParams  # max_tokens and seed are filled in from the fields below
    max_tokens: int | None = None
    seed: int | None = None
    stop_strings: tuple[str, ...] = ()
    request_id: str = ""
    routing_key: str = ""  # requests of equal keys get the same version of a split; empty: by chance
    deadline_s: float | None = None  # moment on the monotonic clock


@dataclass(frozen=True, slots=True)
class Started:
    """The first step of the request has run."""

    adapter_digest: str
    num_prompt_tokens: int
    queue_s: float  # from admission until that step


@dataclass(slots=True)
class TextDelta:
    """A piece of the completion."""

    text: str
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Finished:
    """The completion is over."""

    finish_reason: FinishReason
    num_prompt_tokens: int
    num_cached_prompt_tokens: int
    num_completion_tokens: int
    timings: SequenceTimings


GenerationEvent = Started | TextDelta | Finished


@dataclass(frozen=True, slots=True)
class GenerationLimits:
    """Bounds of the front end."""

    max_waiting: int
    max_context_tokens: int
    max_output_tokens: int
    max_running: int
    default_deadline_s: float
    max_deadline_s: float


class GenerationService:
    """Serves requests. Owned by the front end's event loop."""

    def __init__(
        self,
        engine: EngineClient,
        tokenizer: BaseTokenizer,
        directory: AdapterDirectory,
        limits: GenerationLimits,
        shadows: ShadowStarter = no_shadows,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._directory = directory
        self._limits = limits
        self._shadows = shadows
        self._clock = clock
        self._num_in_flight = 0
        self._num_unstarted = 0
        self._mean_service_s = 1.0
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_draining = False
        # Prefixes are shared by all requests of one adapter for now; with tenants, the salt becomes theirs.
        self._cache_salt = secrets.token_bytes(16)

    @property
    def num_in_flight(self) -> int:
        """Requests admitted and not ended."""
        return self._num_in_flight

    def start_draining(self) -> None:
        """Refuse new requests from now on."""
        self._is_draining = True

    async def wait_until_idle(self) -> None:
        """Until no request is in flight."""
        await self._idle.wait()

    async def count_tokens(self, prompt: Prompt) -> int:
        """Tokens of the rendered prompt."""
        return len(await self._encode(prompt))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent]:
        """One Started, TextDeltas, one Finished. Closing the iterator ends the sequence in the engine at once.

        Raises QueueFullError, DrainingError, DeadlineExceededError, ContextOverflowError, InvalidRequestError,
        AdapterError and EngineError.
        """
        # One generator, not one per layer: each would cost every token of every stream another resumption.
        arrival_s = self._clock()
        self._check_admission()
        with self._admitted(arrival_s) as admission, await self._leased(request) as resolved:
            sequence = await self._submit(request, arrival_s, resolved)
            completion = sequence.completion
            try:
                outputs = await sequence.stream.take()
                raise_failure(outputs[0])
                admission.has_started()
                timings = outputs[0].timings
                queue_s = timings.queue_s if timings is not None else 0.0
                yield Started(
                    resolved.version.digest if resolved else "", completion.num_prompt_tokens, queue_s
                )
                while True:
                    delta = completion.add(outputs)
                    if delta is not None:
                        yield delta
                    if completion.finish_reason is not None:
                        break
                    outputs = await sequence.stream.take()
                sequence.served()
                yield completion.finished()
            except AdapterUnavailableError:
                if resolved is not None:
                    await self._directory.mark_failed(resolved.adapter.name, resolved.version.digest)
                raise
            finally:
                sequence.end()
                self._engine.finish(sequence.sequence_id, abort=not completion.is_ended_by_engine)

    def _check_admission(self) -> None:
        if self._is_draining:
            raise DrainingError("the server is stopping; send the request to another one or again later")
        if self._num_unstarted >= self._limits.max_waiting:
            rate = self._limits.max_running / max(self._mean_service_s, 1e-3)
            retry_s = min(max(self._num_unstarted / rate, _MIN_RETRY_S), _MAX_RETRY_S)
            raise QueueFullError(f"{self._num_unstarted} requests wait already; try again later", retry_s)

    @contextmanager
    def _admitted(self, arrival_s: float) -> Iterator[_Admission]:
        """Count the request while it is in flight."""
        self._num_in_flight += 1
        self._num_unstarted += 1
        self._idle.clear()
        admission = _Admission(self._count_started)
        try:
            yield admission
        finally:
            admission.has_started()  # or never will
            self._num_in_flight -= 1
            service_s = self._clock() - arrival_s
            self._mean_service_s += _SERVICE_TIME_WEIGHT * (service_s - self._mean_service_s)
            if self._num_in_flight == 0:
                self._idle.set()

    def _count_started(self) -> None:
        self._num_unstarted -= 1

    async def _leased(self, request: GenerationRequest) -> AbstractContextManager[Resolved | None]:
        """The version that answers, held in a `with` block that is entered at once; None for the base model."""
        if request.adapter is None:
            return nullcontext()
        key = request.routing_key or secrets.token_hex(8)
        return self._directory.lease(await self._directory.resolve(request.adapter, key))

    async def _submit(
        self, request: GenerationRequest, arrival_s: float, resolved: Resolved | None
    ) -> _SubmittedSequence:
        """With the adapter held: tokenize and hand over to the engine. One timer watches the deadline from now on."""
        deadline_s = self._deadline(request, arrival_s)
        token_ids = await self._encode(request.prompt)
        sampling = self._complete_sampling(request, token_ids)
        digest = resolved.version.digest if resolved is not None else None
        command = AddSequence(0, token_ids, digest, self._cache_salt, sampling, arrival_s)

        detokenizer = Detokenizer(self._tokenizer.backend)
        completion = _Completion(
            detokenizer, StopStrings(request.stop_strings), sampling, num_prompt_tokens=len(token_ids)
        )
        sequence_id, stream = self._engine.submit(command)
        shadow = self._shadows(resolved, command) if resolved is not None else None
        passed = DeadlineExceededError("the deadline passed before the completion was finished")
        timer = asyncio.get_running_loop().call_later(deadline_s - self._clock(), stream.fail, passed)
        return _SubmittedSequence(sequence_id, stream, completion, timer, shadow)

    def _deadline(self, request: GenerationRequest, arrival_s: float) -> float:
        if request.deadline_s is None:
            return arrival_s + self._limits.default_deadline_s
        return min(request.deadline_s, arrival_s + self._limits.max_deadline_s)

    async def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            is_long = len(prompt) > _INLINE_ENCODE_CHARACTERS
        else:
            characters = (len(part.content) for part in prompt if isinstance(part, ChatMessage))
            is_long = sum(characters) > _INLINE_ENCODE_CHARACTERS
        if is_long:
            return await asyncio.to_thread(self._tokenizer.encode, prompt)
        return self._tokenizer.encode(prompt)

    def _complete_sampling(self, request: GenerationRequest, token_ids: list[int]) -> SamplingParams:
        """Fill in what depends on the prompt. Raises ContextOverflowError when nothing can be generated."""
        vocab_size = self._tokenizer.vocab_size
        if not token_ids:
            raise InvalidRequestError([FieldViolation("input", "the prompt has no tokens")])
        if max(token_ids) >= vocab_size:
            raise InvalidRequestError(
                [FieldViolation("input", f"every token id must be below {vocab_size}, the vocabulary size")]
            )
        room = self._limits.max_context_tokens - len(token_ids)
        wanted = request.max_tokens
        if room < max(wanted or 1, 1):
            raise ContextOverflowError(
                f"the prompt has {len(token_ids)} tokens and {wanted or 1} more are asked for, but the context holds "
                f"{self._limits.max_context_tokens}; shorten the prompt or lower max_tokens"
            )
        max_tokens = min(wanted or DEFAULT_MAX_TOKENS, room, self._limits.max_output_tokens)
        seed = request.seed if request.seed is not None else secrets.randbits(64)
        return msgspec.structs.replace(request.sampling, max_tokens=max_tokens, seed=seed)


class _Admission:
    """One admitted request; tells once that it waits no longer."""

    def __init__(self, on_started: Callable[[], None]) -> None:
        self._on_started = on_started
        self._is_waiting = True

    def has_started(self) -> None:
        if self._is_waiting:
            self._is_waiting = False
            self._on_started()


@dataclass(frozen=True, slots=True)
class _SubmittedSequence:
    """A sequence in the engine and what becomes of its outputs."""

    sequence_id: int
    stream: SequenceStream
    completion: _Completion
    deadline: asyncio.TimerHandle  # fails the stream
    shadow: ShadowRun | None

    def served(self) -> None:
        """The completion is whole."""
        if self.shadow is not None:
            self.shadow.served_with(self.completion.served_tokens())

    def end(self) -> None:
        """Whatever happened."""
        self.deadline.cancel()
        if self.shadow is not None:
            self.shadow.not_served()


class _Completion:
    """The growing completion of one request."""

    def __init__(
        self, detokenizer: Detokenizer, stops: StopStrings, sampling: SamplingParams, num_prompt_tokens: int
    ) -> None:
        self._detokenizer = detokenizer
        self._stops = stops
        self._sampling = sampling
        self.num_prompt_tokens = num_prompt_tokens
        self._token_ids: list[int] = []
        self._num_cached = 0
        self._timings = SequenceTimings(0.0, 0.0, 0.0, 0.0)
        self._first_token_s = 0.0
        self.finish_reason: FinishReason | None = None
        self.is_ended_by_engine = False

    def add(self, outputs: list[TokenOutput]) -> TextDelta | None:
        """Take in engine outputs; None if they bring nothing to show."""
        delta = TextDelta("")
        for output in outputs:
            self.is_ended_by_engine = output.finish_reason is not None
            raise_failure(output)
            self._num_cached += output.cached_prompt_tokens
            if output.timings is not None:
                self._timings = output.timings
            for token_id in output.token_ids:
                self._add_token(token_id, output.finish_reason, delta)
            if output.logprobs is not None:
                delta.logprobs += output.logprobs
            if self._stops.is_matched:
                self.finish_reason = FinishReason.STOP
                break
            if output.finish_reason is not None:
                self.finish_reason = output.finish_reason
                delta.text += self._stops.push(self._detokenizer.flush())
                if self._stops.is_matched:
                    self.finish_reason = FinishReason.STOP
                else:
                    delta.text += self._stops.flush()
        return delta if delta.token_ids else None

    def finished(self) -> Finished:
        """The last event."""
        assert self.finish_reason is not None
        timings = self._timings
        if not self.is_ended_by_engine:  # a stop string: the engine did not know the end
            timings = SequenceTimings(
                timings.queue_s,
                timings.adapter_load_s,
                timings.prefill_s,
                time.monotonic() - self._first_token_s,
            )
        return Finished(
            self.finish_reason, self.num_prompt_tokens, self._num_cached, len(self._token_ids), timings
        )

    def served_tokens(self) -> ServedTokens:
        """What was generated so far."""
        return ServedTokens(self._token_ids, is_cut=not self.is_ended_by_engine)

    def _add_token(self, token_id: int, finish_reason: FinishReason | None, delta: TextDelta) -> None:
        if not self._token_ids:
            self._first_token_s = time.monotonic()
        self._token_ids.append(token_id)
        delta.token_ids.append(token_id)
        is_unseen_end = finish_reason is FinishReason.STOP  # the token that ended it is not part of the text
        if is_unseen_end:
            return
        text = self._detokenizer.push(token_id)
        if text:
            delta.text += self._stops.push(text, may_end=len(self._token_ids) >= self._sampling.min_tokens)
