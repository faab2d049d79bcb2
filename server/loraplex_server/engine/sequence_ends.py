"""When a sequence has its last token."""

from __future__ import annotations

from collections.abc import Iterable

from loraplex_server.engine.messages import FinishReason
from loraplex_server.engine.sequence import Sequence


class SequenceEnds:
    """What ends sequences of one base."""

    def __init__(self, eos_token_ids: Iterable[int], max_context_tokens: int) -> None:
        self._eos_token_ids = frozenset(eos_token_ids)
        self._max_context_tokens = max_context_tokens

    def reason(self, sequence: Sequence, token_id: int) -> FinishReason | None:
        """Of a sequence whose newest token is `token_id`; None if it goes on."""
        sampling = sequence.sampling
        num_output = len(sequence.output_token_ids)
        if num_output >= sampling.min_tokens:
            if token_id in self._eos_token_ids and not sampling.ignore_eos:
                return FinishReason.STOP
            if token_id in sampling.stop_token_ids:
                return FinishReason.STOP
        num_tokens = len(sequence.prompt_token_ids) + num_output
        if num_output >= sampling.max_tokens or num_tokens >= self._max_context_tokens:
            return FinishReason.LENGTH
        return None

    def is_sure(self, sequence: Sequence) -> bool:
        """Whether its last token is known or pending, whatever it is."""
        is_complete = sequence.num_output_tokens >= sequence.sampling.max_tokens
        return is_complete or sequence.num_tokens >= self._max_context_tokens
