"""Golden prompts on the live engine."""

from __future__ import annotations

import time

from loraplex_server.admission.golden import GoldenAnswer
from loraplex_server.engine.messages import AddSequence, SamplingParams
from loraplex_server.engine_client import EngineClient
from loraplex_server.engine_failures import raise_failure

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
        sequence_id, stream = self._engine.submit(
            AddSequence(
                0, token_ids, digest, self._cache_salt, sampling, time.monotonic(), is_background=True
            )
        )
        answer: list[int] = []
        logprobs: list[list[float]] = []
        is_ended = False
        try:
            while not is_ended:
                for output in await stream.take():
                    is_ended = output.finish_reason is not None
                    raise_failure(output)
                    answer += output.token_ids
                    for position in output.logprobs or ():
                        logprobs.append([position.logprob, *(logprob for _, logprob in position.top)])
        finally:
            self._engine.finish(sequence_id, abort=not is_ended)
        return GoldenAnswer(answer, logprobs)
