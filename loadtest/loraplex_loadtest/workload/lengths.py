"""How many tokens prompts and answers have: pure functions of a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from loraplex_loadtest.errors import ScenarioInvalidError
from loraplex_loadtest.spec import Spec
from loraplex_loadtest.workload.arrivals import read_rows

Lengths = NDArray[np.int64]
"""Tokens, each at least 1."""


class FixedLength(Spec):
    """Always the same."""

    kind: Literal["fixed"]
    tokens: PositiveInt

    def sample(self, count: int, rng: np.random.Generator) -> Lengths:
        return np.full(count, self.tokens, dtype=np.int64)


class UniformLength(Spec):
    """Every length of [low, high] equally likely."""

    kind: Literal["uniform"]
    low: PositiveInt
    high: PositiveInt

    @model_validator(mode="after")
    def _check(self) -> UniformLength:
        if self.low > self.high:
            raise ValueError("low must not be above high")
        return self

    def sample(self, count: int, rng: np.random.Generator) -> Lengths:
        return rng.integers(self.low, self.high + 1, count)


class LognormalLength(Spec):
    """exp of a normal with the given median and sigma, cut to [low, high]."""

    kind: Literal["lognormal"]
    median: PositiveFloat
    sigma: PositiveFloat = 0.5
    low: PositiveInt = 1
    high: PositiveInt = 4096

    def sample(self, count: int, rng: np.random.Generator) -> Lengths:
        drawn = np.exp(rng.normal(np.log(self.median), self.sigma, count))
        return np.clip(np.rint(drawn), self.low, self.high).astype(np.int64)


class FileLength(Spec):
    """Drawn, with replacement, from a column of a CSV or JSONL file."""

    kind: Literal["file"]
    file: Path
    column: str

    def sample(self, count: int, rng: np.random.Generator) -> Lengths:
        try:
            values = np.array([int(row[self.column]) for row in read_rows(self.file)], dtype=np.int64)
        except (KeyError, TypeError, ValueError) as error:
            raise ScenarioInvalidError(f"column {self.column!r} of {self.file.name}: {error}") from None
        if not len(values) or values.min() < 1:
            raise ScenarioInvalidError(f"{self.file.name} must hold lengths of at least 1")
        return rng.choice(values, count)


Length = Annotated[FixedLength | UniformLength | LognormalLength | FileLength, Field(discriminator="kind")]
