"""Which adapter each request names: pure functions of a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt

from loraplex_loadtest.errors import ScenarioInvalidError
from loraplex_loadtest.spec import Spec

Picks = NDArray[np.int64]
"""Index into the names, one for each request."""


class _Mix(Spec):
    def picks(self, names: Sequence[str], at_s: NDArray[np.float64], rng: np.random.Generator) -> Picks:
        """One index for each request; `at_s` are the intended moments (0 in a closed loop)."""
        shares = self.shares(names)
        return rng.choice(len(names), size=len(at_s), p=shares)

    def shares(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Probability of each name; they add up to 1."""
        return np.full(len(names), 1 / len(names))


class IdenticalMix(_Mix):
    """Every request the first adapter."""

    kind: Literal["identical"]

    def picks(self, names: Sequence[str], at_s: NDArray[np.float64], rng: np.random.Generator) -> Picks:
        return np.zeros(len(at_s), dtype=np.int64)


class DistinctMix(_Mix):
    """The worst case: all adapters in a drawn order, each once before any comes again."""

    kind: Literal["distinct"]

    def picks(self, names: Sequence[str], at_s: NDArray[np.float64], rng: np.random.Generator) -> Picks:
        rounds = -(-len(at_s) // len(names))
        order = np.concatenate([rng.permutation(len(names)) for _ in range(max(1, rounds))])
        return order[: len(at_s)]


class UniformMix(_Mix):
    """Every adapter equally likely."""

    kind: Literal["uniform"]


class RoundRobinMix(_Mix):
    """In order, again and again."""

    kind: Literal["round_robin"]

    def picks(self, names: Sequence[str], at_s: NDArray[np.float64], rng: np.random.Generator) -> Picks:
        return np.arange(len(at_s), dtype=np.int64) % len(names)


class ZipfMix(_Mix):
    """The adapter of rank k with a probability as k^-alpha; any alpha above 0, since the names are finite."""

    kind: Literal["zipf"]
    alpha: PositiveFloat = 1.0

    def shares(self, names: Sequence[str]) -> NDArray[np.float64]:
        weights: NDArray[np.float64] = np.arange(1, len(names) + 1, dtype=np.float64) ** -self.alpha
        return np.asarray(weights / weights.sum())


class PowerLawMix(_Mix):
    """S-LoRA's: index = n·U^(1/alpha); alpha 1 is uniform, smaller ones are steeper."""

    kind: Literal["power_law"]
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.5

    def shares(self, names: Sequence[str]) -> NDArray[np.float64]:
        return np.diff((np.arange(len(names) + 1) / len(names)) ** self.alpha)


class HotSetMix(_Mix):
    """Some adapters get most requests; at each of `shift_at_s` others do."""

    kind: Literal["hot_set"]
    hot: PositiveInt = 1  # how many are hot at once
    share: Annotated[float, Field(ge=0, le=1)] = 0.9  # of the requests that they get
    shift_at_s: tuple[float, ...] = ()

    def picks(self, names: Sequence[str], at_s: NDArray[np.float64], rng: np.random.Generator) -> Picks:
        count = min(self.hot, len(names))
        epoch = np.searchsorted(np.sort(np.array(self.shift_at_s)), at_s, side="right")
        hot = (epoch * count + rng.integers(0, count, len(at_s))) % len(names)
        cold = (epoch * count + count + rng.integers(0, max(1, len(names) - count), len(at_s))) % len(names)
        return np.where(rng.random(len(at_s)) < self.share, hot, cold).astype(np.int64)


class WeightsMix(_Mix):
    """Explicit weights by name; a name without one gets no requests."""

    kind: Literal["weights"]
    weights: Annotated[Mapping[str, Annotated[float, Field(ge=0)]], Field(min_length=1)]

    def shares(self, names: Sequence[str]) -> NDArray[np.float64]:
        if unknown := sorted(set(self.weights) - set(names)):
            raise ScenarioInvalidError(f"weights name adapters that are not in the run: {', '.join(unknown)}")
        weights = np.array([self.weights.get(name, 0.0) for name in names])
        if not weights.sum():
            raise ScenarioInvalidError("every weight of the adapters is 0")
        return np.asarray(weights / weights.sum())


AdapterMix = Annotated[
    IdenticalMix | DistinctMix | UniformMix | RoundRobinMix | ZipfMix | PowerLawMix | HotSetMix | WeightsMix,
    Field(discriminator="kind"),
]


def pick_tenants(weights: Mapping[str, float], count: int, rng: np.random.Generator) -> list[str]:
    """A tenant for each request, by weight."""
    names = list(weights)
    shares = np.array([weights[name] for name in names], dtype=np.float64)
    return [names[index] for index in rng.choice(len(names), size=count, p=shares / shares.sum())]
