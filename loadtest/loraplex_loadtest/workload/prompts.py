"""Texts of an exact number of tokens, the same for the same seed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loraplex_loadtest.errors import PromptLengthError, ScenarioInvalidError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# One token each, behind a space, in the vocabularies of GPT-2, Llama, Qwen and SmolLM.
_WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work government number night point home water room mother area money
story fact month lot right study book eye job word business issue side kind head house service friend father power
hour game line end member law car city community name president team minute idea body information back parent face
others level office door health person art war history party result change morning reason research girl guy moment
air teacher force education
"""
COMMON_WORDS = tuple(_WORDS.split())
_MAX_ROUNDS = 16


class PromptWriter:
    """Writes texts. Without a tokenizer a word counts as a token, which `is_exact` tells."""

    def __init__(self, tokenizer: Tokenizer | None, overhead_tokens: int = 0) -> None:
        """`overhead_tokens` is what the target's template adds to every text."""
        self._tokenizer = tokenizer
        self._overhead = overhead_tokens
        self._prefixes: dict[tuple[int, int], str] = {}
        self._words = COMMON_WORDS if tokenizer is None else _single_token_words(tokenizer)

    @property
    def is_exact(self) -> bool:
        return self._tokenizer is not None

    def text(self, num_tokens: int, seed: int, prefix_tokens: int = 0, prefix_seed: int = 0) -> str:
        """A text of `num_tokens`, the template's included; its first `prefix_tokens` depend on `prefix_seed` alone.

        Raises PromptLengthError if the tokenizer cannot be brought to that length.
        """
        wanted = num_tokens - self._overhead
        if wanted < 1:
            raise PromptLengthError(
                f"{num_tokens} tokens are no more than the {self._overhead} of the chat template"
            )
        prefix = self._prefix(min(prefix_tokens, wanted), prefix_seed)
        rest = wanted - min(prefix_tokens, wanted)
        return self._exact(prefix + self._draw(rest, seed), wanted)

    def _prefix(self, num_tokens: int, seed: int) -> str:
        """Made once for all requests that share it."""
        if (num_tokens, seed) not in self._prefixes:
            text = self._draw(num_tokens, seed)
            self._prefixes[num_tokens, seed] = self._exact(text, num_tokens) if num_tokens else ""
        return self._prefixes[num_tokens, seed]

    def _draw(self, count: int, seed: int) -> str:
        picks = np.random.default_rng(seed).integers(0, len(self._words), count)
        return "".join(f" {self._words[index]}" for index in picks)

    def _exact(self, text: str, wanted: int) -> str:
        if self._tokenizer is None:
            return text
        for _ in range(_MAX_ROUNDS):
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            if len(ids) == wanted:
                return text
            if len(ids) > wanted:
                # What is cut and decoded may join differently when it is encoded again: hence the rounds.
                text = self._tokenizer.decode(ids[:wanted], skip_special_tokens=False)
            else:
                text += f" {self._words[len(ids) % len(self._words)]}" if wanted - len(ids) > 1 else "."
        raise PromptLengthError(f"the tokenizer has no text of exactly {wanted} tokens")


def load_tokenizer(path: Path) -> Tokenizer:
    """Of a tokenizer.json, or of a folder that holds one."""
    from tokenizers import Tokenizer

    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ScenarioInvalidError(
            f"no tokenizer.json at '{path}': give the base's folder or the file itself"
        )
    return Tokenizer.from_file(str(file))


def _single_token_words(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Words that are one token behind a space; single letters where the vocabulary has none."""
    encoded = tokenizer.encode_batch([f" {word}" for word in COMMON_WORDS], add_special_tokens=False)
    words = [word for word, found in zip(COMMON_WORDS, encoded, strict=True) if len(found.ids) == 1]
    return tuple(words) if len(words) >= 20 else tuple("bcdfghjklmnpqrstvwxz")
