"""Texts that are nearly the same: MinHash-LSH finds candidates, the n-grams themselves decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loraplex_trainer.data.progress import Progress, silent
from loraplex_trainer.data.text import grams, numbers

NUM_PERM = 128
_SEED = 1
_BATCH = 500


class NearIndex:
    """Texts by position, to be asked for those similar to another text.

    Similar means: Jaccard similarity of their character n-grams of at least `threshold`, and the same numbers.
    "The fee is 12 dollars" and "The fee is 13 dollars" are two facts.
    """

    def __init__(
        self, texts: Sequence[str], threshold: float, progress: Progress = silent, stage: str = ""
    ) -> None:
        from datasketch import MinHashLSH

        self._texts = texts
        self._threshold = threshold
        self._lsh = MinHashLSH(threshold=threshold, num_perm=NUM_PERM)
        self._hashes = []
        for begin in range(0, len(texts), _BATCH):
            progress(stage, begin, len(texts))
            for position, sketch in enumerate(_sketches(texts[begin : begin + _BATCH]), start=begin):
                self._hashes.append(sketch)
                self._lsh.insert(position, sketch)
        if texts:
            progress(stage, len(texts), len(texts))

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Every pair of similar texts, (smaller, larger), in order."""
        for position, sketch in enumerate(self._hashes):
            for other in sorted(self._lsh.query(sketch)):
                if other > position and self._similar(self._texts[position], self._texts[other]):
                    yield position, other

    def like(self, text: str) -> list[int]:
        """Positions of the texts that are similar to `text`, in order."""
        (sketch,) = _sketches([text])
        return sorted(found for found in self._lsh.query(sketch) if self._similar(self._texts[found], text))

    def _similar(self, one: str, other: str) -> bool:
        return numbers(one) == numbers(other) and similarity(one, other) >= self._threshold


def similarity(one: str, other: str) -> float:
    """Jaccard similarity of the character n-grams of two texts, in [0, 1]."""
    first, second = grams(one), grams(other)
    return len(first & second) / len(first | second)


def _sketches(texts: Sequence[str]) -> list:  # type: ignore[type-arg]  # datasketch has no types
    from datasketch import MinHash
    from xxhash import xxh32_intdigest

    encoded = [[gram.encode() for gram in sorted(grams(text))] for text in texts]
    return list(MinHash.bulk(encoded, num_perm=NUM_PERM, seed=_SEED, hashfunc=xxh32_intdigest))
