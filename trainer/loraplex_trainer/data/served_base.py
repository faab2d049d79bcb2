"""The base of a running server as one that can be asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from loraplex_trainer.data.questions.written import Ask

_MAX_TOKENS = 96
_TIMEOUT_S = 60.0


@contextmanager
def served_base(address: str) -> Iterator[Ask]:
    """`ask` for the base that the server at host:port holds; greedy, so that the same server gives the same data.

    `ask` raises LoraplexApiError where the server does not answer.
    """
    from loraplex_client.client import LoraplexClient

    with LoraplexClient(address, timeout_s=_TIMEOUT_S) as client:

        def ask(prompt: str) -> str:
            messages = [{"role": "user", "content": prompt}]
            return client.generate(messages=messages, max_tokens=_MAX_TOKENS, temperature=0.0).text

        yield ask
