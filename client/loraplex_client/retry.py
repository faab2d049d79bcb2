"""When the client itself sends a refused request again: only if the server said after how long."""

from __future__ import annotations

import time

from loraplex_client.errors import LoraplexApiError, OverloadedError
from loraplex_client.service_config import MAX_ATTEMPTS


class RetryBudget:
    """Attempts and time left of one call. UNAVAILABLE is not its business: grpc retries that by the service config."""

    def __init__(self, timeout_s: float | None) -> None:
        self._deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._attempts_left = MAX_ATTEMPTS - 1

    @property
    def timeout_s(self) -> float | None:
        """What is left for the next attempt; never negative."""
        return None if self._deadline_s is None else max(0.0, self._deadline_s - time.monotonic())

    def pause_s(self, error: LoraplexApiError) -> float | None:
        """Seconds to wait before the next attempt; None: give the error to the caller.

        Counts the attempt.
        """
        if not isinstance(error, OverloadedError) or error.retry_after_s is None or not self._attempts_left:
            return None
        left_s = self.timeout_s
        if left_s is not None and error.retry_after_s >= left_s:
            return None
        self._attempts_left -= 1
        return error.retry_after_s
