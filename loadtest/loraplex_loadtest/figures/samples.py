"""A recording as columns, and the figures of single requests.

TTFT   first token - intended send              service TTFT  first token - actual send
E2E    end of tokens - intended send            client queue  actual - intended send
TPOT   (last - first token) / (tokens - 1)      NTPOT         E2E / tokens
ITL    gaps between messages, each spread evenly over the tokens that the later message brought
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loraplex_loadtest.records import CANCELLED_BY_PLAN, OK, Recording

Column = NDArray[np.float64]
Mask = NDArray[np.bool_]
Texts = NDArray[np.str_]


@dataclass(frozen=True)
class Samples:
    """All requests of a run as columns of equal length; moments in seconds since it began."""

    intended_s: Column
    sent_s: Column
    first_s: Column
    last_s: Column
    ended_s: Column
    tokens: Column
    prompt_tokens: Column
    max_tokens: Column
    queue_s: Column
    adapter_load_s: Column
    attempts: Column
    is_ok: Mask
    was_cut_by_plan: Mask
    is_cold: Mask
    status: Texts
    tenant: Texts
    adapter: Texts
    traffic: Texts
    message_request: NDArray[np.int64]  # columns of the messages: request, moment, tokens
    message_s: Column
    message_tokens: NDArray[np.int64]
    window_s: tuple[float, float]

    @classmethod
    def of(cls, recording: Recording, window_s: tuple[float, float]) -> Samples:
        """`window_s`: requests that are meant for a moment in it are measured."""
        records = recording.records

        def numbers(values: Sequence[float]) -> Column:
            return np.array(values, dtype=np.float64)

        def texts(values: Sequence[str]) -> Texts:
            return np.array(values, dtype=np.str_)

        return cls(
            intended_s=numbers([record.intended_s for record in records]),
            sent_s=numbers([record.sent_s for record in records]),
            first_s=numbers([record.first_s for record in records]),
            last_s=numbers([record.last_s for record in records]),
            ended_s=numbers([record.ended_s for record in records]),
            tokens=numbers([record.tokens for record in records]),
            prompt_tokens=numbers([record.prompt_tokens for record in records]),
            max_tokens=numbers([record.max_tokens for record in records]),
            queue_s=numbers([record.queue_s for record in records]),
            adapter_load_s=numbers([record.adapter_load_s for record in records]),
            attempts=numbers([record.attempts for record in records]),
            is_ok=np.array([record.status == OK for record in records], dtype=np.bool_),
            was_cut_by_plan=np.array(
                [record.status == CANCELLED_BY_PLAN for record in records], dtype=np.bool_
            ),
            is_cold=np.array([record.is_cold for record in records], dtype=np.bool_),
            status=texts([record.status for record in records]),
            tenant=texts([record.tenant for record in records]),
            adapter=texts([record.adapter for record in records]),
            traffic=texts([record.traffic for record in records]),
            message_request=recording.request,
            message_s=recording.at_s,
            message_tokens=recording.tokens,
            window_s=window_s,
        )

    @property
    def seconds(self) -> float:
        """Length of the window."""
        return self.window_s[1] - self.window_s[0]

    @property
    def is_measured(self) -> Mask:
        return (self.intended_s >= self.window_s[0]) & (self.intended_s < self.window_s[1])

    @property
    def ttft_s(self) -> Column:
        """NaN where no token came."""
        return self.first_s - self.intended_s

    @property
    def service_ttft_s(self) -> Column:
        return self.first_s - self.sent_s

    @property
    def client_queue_s(self) -> Column:
        return self.sent_s - self.intended_s

    @property
    def e2e_s(self) -> Column:
        """Of requests that ended well; NaN for the others."""
        return np.where(self.is_ok, self.last_s - self.intended_s, np.nan)

    @property
    def tpot_s(self) -> Column:
        """NaN for fewer than two tokens, and for requests that did not end well."""
        has_two = self.is_ok & (self.tokens >= 2)
        return np.where(has_two, (self.last_s - self.first_s) / np.maximum(self.tokens - 1, 1), np.nan)

    @property
    def ntpot_s(self) -> Column:
        return self.e2e_s / np.maximum(self.tokens, 1)

    def inter_token_s(self, chosen: Mask) -> Column:
        """One gap per token but the first message's, of the chosen requests, cut or not."""
        same = self.message_request[1:] == self.message_request[:-1]
        counts = self.message_tokens[1:]
        gaps = (self.message_s[1:] - self.message_s[:-1]) / np.maximum(counts, 1)
        wanted = same & chosen[self.message_request[1:]]
        return np.repeat(gaps[wanted], counts[wanted])

    def tokens_in_window(self, chosen: Mask) -> int:
        """Tokens of the chosen requests that arrived within the window, whenever these were sent."""
        inside = (self.message_s >= self.window_s[0]) & (self.message_s < self.window_s[1])
        return int(self.message_tokens[inside & chosen[self.message_request]].sum())

    def running_at(self, moments_s: Column) -> NDArray[np.int64]:
        """Requests sent and not ended."""
        ended = np.sort(self.ended_s[~np.isnan(self.ended_s)])
        sent = np.searchsorted(np.sort(self.sent_s), moments_s, side="right")
        return (sent - np.searchsorted(ended, moments_s, side="right")).astype(np.int64)
