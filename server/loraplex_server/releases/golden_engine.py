"""Golden prompts on the live engine."""

from __future__ import annotations

import time

from loraplex_server.admission.golden import GoldenAnswer
from loraplex_server.engine.messages import AddSequence, SamplingParams
from loraplex_server.engine_client import EngineClient
from loraplex_server.releases.unseen_run import run_unseen

_TOP_LOGPROBS = 5


class GoldenCompleter:
    """Greedy completions of an adapter that no name leads to yet. Its prefixes are shared with nobody."""

    def __init__(self, engine: EngineClient, cache_salt: bytes) -> None:
        self._engine = engine
        self._cache_salt = cache_salt

    async def __call__(self, token_ids: list[int], digest: str | None, max_tokens: int) -> GoldenAnswer:
        """Raises EngineError, AdapterUnavailableError, AdapterTooLargeError."""
        sampling = SamplingParams(
            temperature=0.0, max_tokens=max_tokens, ignore_eos=True, top_logprobs=_TOP_LOGPROBS
        )
        command = AddSequence(
            0, token_ids, digest, self._cache_salt, sampling, time.monotonic(), is_background=True
        )
        outputs = await run_unseen(self._engine, command)
        positions = [position for output in outputs for position in output.logprobs or ()]
        return GoldenAnswer(
            [token_id for output in outputs for token_id in output.token_ids],
            [[each.logprob, *(logprob for _, logprob in each.top)] for each in positions],
        )
