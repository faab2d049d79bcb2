"""A stream that is read in a thread of its own until the test has seen enough of it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from loraplex_client import CompletionStream, Delta, Finished, LoraplexClient, Started

MORE_TOKENS = 8  # that a stream goes on after the test has seen enough


class RunningStream:
    """Begins when it is made."""

    def __init__(
        self, client: LoraplexClient, threads: ThreadPoolExecutor, prompt: str, **options: Any
    ) -> None:
        self.digest = ""
        self.token_ids: list[int] = []
        self.is_whole = False
        self._has_begun = threading.Event()
        self._is_enough = threading.Event()
        self._reading = threads.submit(self._read, client.stream(prompt, **options))

    def await_begun(self) -> None:
        """Until its first token is there; raises what ended it before."""
        self._has_begun.wait()
        if self._reading.done():
            self._reading.result()

    def end(self) -> None:
        """Read a little more, unless it is over, then go away. Raises what ended it early."""
        self._is_enough.set()
        self.await_end()

    def await_end(self) -> None:
        """Read it whole. Raises what ended it early."""
        self._reading.result()

    def _read(self, stream: CompletionStream) -> None:
        try:
            with stream:
                num_wanted = None
                for event in stream:
                    if isinstance(event, Started):
                        self.digest = event.adapter_digest
                    elif isinstance(event, Delta):
                        self.token_ids += event.token_ids
                        self._has_begun.set()
                    else:
                        assert isinstance(event, Finished)
                        self.is_whole = True
                    if self._is_enough.is_set() and num_wanted is None:
                        num_wanted = len(self.token_ids) + MORE_TOKENS
                    if num_wanted is not None and len(self.token_ids) >= num_wanted:
                        return
        finally:
            self._has_begun.set()
