"""When a request is sent again, as Loraplex's own client does it."""

from __future__ import annotations

from loraplex_client.retry import backoff_s
from loraplex_client.service_config import MAX_ATTEMPTS, SERVICE_CONFIG
from loraplex_loadtest.records import RequestRecord

_MAX_TOKENS: float = SERVICE_CONFIG["retryThrottling"]["maxTokens"]
_TOKEN_RATIO: float = SERVICE_CONFIG["retryThrottling"]["tokenRatio"]


class Retries:
    """Of one generator process.

    UNAVAILABLE by the published service config, its throttle included; RESOURCE_EXHAUSTED after as long as the server
    says. What the server has begun to answer must not be asked about: it is never sent again.
    """

    def __init__(self, are_on: bool) -> None:
        self._are_on = are_on
        self._tokens = _MAX_TOKENS

    def pause_s(self, record: RequestRecord, retry_after_s: float | None, left_s: float) -> float | None:
        """After an attempt: seconds until the next one; None: there is none.

        left_s  until the request's deadline
        """
        if not self._are_on:
            return None
        pause_s = self._asked_s(record, retry_after_s)
        is_late = pause_s is not None and pause_s >= left_s
        return None if is_late or record.attempts >= MAX_ATTEMPTS else pause_s

    def succeeded(self) -> None:
        """An attempt ended well: the throttle opens a little."""
        self._tokens = min(_MAX_TOKENS, self._tokens + _TOKEN_RATIO)

    def _asked_s(self, record: RequestRecord, retry_after_s: float | None) -> float | None:
        if record.status == "RESOURCE_EXHAUSTED":
            return retry_after_s
        if record.status != "UNAVAILABLE":
            return None
        self._tokens = max(0.0, self._tokens - 1)
        return backoff_s(record.attempts) if self._tokens > _MAX_TOKENS / 2 else None
