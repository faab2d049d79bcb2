"""The metrics of one request, recorded from its events as they pass."""

from __future__ import annotations

import time
from types import TracebackType

from loraplex_server.engine.messages import FinishReason
from loraplex_server.generation import GenerationEvent, Started, TextDelta
from loraplex_server.metrics import Metrics


class Observation:
    """A context manager around a request: shown every event, it records the request's end on exit.

    Refused requests, which bring no event and an error, are counted elsewhere as rejects.
    """

    def __init__(self, metrics: Metrics, adapter: str) -> None:
        self._metrics = metrics
        self._adapter = adapter
        self._started_s = time.monotonic()
        self._previous_token_s: float | None = None
        self._num_prompt = 0
        self._num_completion = 0
        self._finish = "cancelled"

    def __enter__(self) -> Observation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            self._finish = "error"
        if self._num_prompt or self._finish != "error":
            seconds = time.monotonic() - self._started_s
            self._metrics.request_ended(
                self._adapter, self._finish, seconds, self._num_prompt, self._num_completion
            )

    def see(self, event: GenerationEvent) -> None:
        """The next event of the request."""
        now_s = time.monotonic()
        if isinstance(event, TextDelta):
            if self._previous_token_s is not None:
                self._metrics.inter_token(now_s - self._previous_token_s)
            self._previous_token_s = now_s
            self._num_completion += len(event.token_ids)
        elif isinstance(event, Started):
            self._num_prompt = event.num_prompt_tokens
            self._metrics.first_token(now_s - self._started_s, event.queue_s)
        else:
            self._finish = FinishReason(event.finish_reason).value
