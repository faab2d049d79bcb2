"""When the client itself sends a request again."""

from __future__ import annotations

import time

from loraplex_client.errors import LoraplexApiError, OverloadedError
from loraplex_client.service_config import BACKOFF_MULTIPLIER, INITIAL_BACKOFF_S, MAX_ATTEMPTS, MAX_BACKOFF_S


class RetryBudget:
    """Attempts and time left of one call.

    UNAVAILABLE is its business only where the caller says so: else grpc retries it by the service config.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._max_attempts = MAX_ATTEMPTS
        self._num_failures = 0

    @property
    def timeout_s(self) -> float | None:
        """What is left for the next attempt; never negative."""
        return None if self._deadline_s is None else max(0.0, self._deadline_s - time.monotonic())

    def pause_s(
        self, error: LoraplexApiError, may_resume: tuple[type[LoraplexApiError], ...] = ()
    ) -> float | None:
        """Seconds to wait before the next attempt; None: give the error to the caller.

        Repeats what the server gave a time for, and `may_resume`, with growing pauses where it gave none. Counts
        the attempt.
        """
        self._num_failures += 1
        if isinstance(error, may_resume):
            pause_s = error.retry_after_s or backoff_s(self._num_failures)
        elif isinstance(error, OverloadedError) and error.retry_after_s is not None:
            pause_s = error.retry_after_s
        else:
            return None
        left_s = self.timeout_s
        is_late = left_s is not None and pause_s >= left_s
        return None if is_late or self._num_failures >= self._max_attempts else pause_s

    def renew(self, max_attempts: int) -> None:
        """Something was achieved: so many attempts from now on. The deadline stays."""
        self._max_attempts = max_attempts
        self._num_failures = 0


def backoff_s(num_failures: int) -> float:
    """The pause after so many failures in a row, at least 1, as the service config has it but without chance."""
    return float(min(MAX_BACKOFF_S, INITIAL_BACKOFF_S * BACKOFF_MULTIPLIER ** (num_failures - 1)))
