"""Token ids -> text, piece by piece, and stop strings that never leak a partial match."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class Detokenizer:
    """Turns the tokens of one completion into text. The pieces, joined, are the decoding of the whole.

    The one exception: where single bytes are tokens (Llama 2, Mistral), decoding a run of them that is not UTF-8
    replaces all of them. What was shown stays, and only the bytes after it are replaced.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._stream = DecodeStream(skip_special_tokens=True)
        self._pending: list[int] = []  # since the last piece: an incomplete character

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        self._pending.append(token_id)
        try:
            piece: str | None = self._stream.step(self._backend, token_id)
        except Exception as error:  # tokenizers has no narrower one
            if "Invalid prefix" not in str(error):
                raise
            return self._resume()
        if piece is None:
            return ""
        self._pending.clear()
        return piece

    def _resume(self) -> str:
        """The pending tokens changed how those before them decode: decode them alone, and go on from there."""
        text = self._decode_pending()
        self._stream = DecodeStream(ids=self._pending, skip_special_tokens=True)
        self._pending = []
        return text

    def flush(self) -> str:
        """What is left at the end: an incomplete character as replacement characters."""
        if not self._pending:
            return ""
        text = self._decode_pending()
        self._pending.clear()
        return text

    def _decode_pending(self) -> str:
        text: str = self._backend.decode(self._pending, skip_special_tokens=True)
        return text


class StopStrings:
    """Cuts a text at the stop string that is complete first; of several complete at once, the longest counts.

    What could be the beginning of a stop string is held back until it is clear that it is not.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self._num_early = 0  # characters of `_held` that came when no stop string could end the text
        self.is_matched = False

    def push(self, text: str, *, may_end: bool = True) -> str:
        """The text that can be shown now. After a match, `is_matched` is set and nothing more comes.

        may_end  False: a stop string that is complete with this text does not count; one that begins in it may.
        """
        if not self._stops:
            return text
        text = self._held + text
        num_early = self._num_early if may_end else len(text)
        self._held = ""
        cut = self._first_match(text, num_early)
        if cut is not None:
            self.is_matched = True
            return text[:cut]
        shown = len(text) - self._length_of_possible_start(text)
        self._held = text[shown:]
        self._num_early = max(0, num_early - shown)
        return text[:shown]

    def flush(self) -> str:
        """What was held back, when the completion ends otherwise."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str, num_early: int) -> int | None:
        """Where the text is to be cut; a stop string must end past the first `num_early` characters."""
        matches = [
            (start + len(stop), start)
            for stop in self._stops
            if (start := text.find(stop, max(0, num_early - len(stop) + 1))) >= 0
        ]
        return min(matches)[1] if matches else None

    def _length_of_possible_start(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = min(max(map(len, self._stops)) - 1, len(text))
        for length in range(longest, 0, -1):
            end = text[-length:]
            if any(length < len(stop) and stop.startswith(end) for stop in self._stops):
                return length
        return 0
