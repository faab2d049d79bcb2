"""What of a PEFT configuration decides the mathematics: which modules, which rank, which scaling."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, TypeVar

from loraplex_adapters.module_patterns import compile_pattern, is_complex

ALL_LINEAR = "all-linear"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """What of a PEFT configuration decides the mathematics.

    Patterns are kept in file order: the first match wins.
    """

    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: tuple[tuple[str, int], ...]
    alpha_pattern: tuple[tuple[str, float], ...]
    target_modules: tuple[str, ...] | str  # names (sorted), "all-linear", or one regular expression
    exclude_modules: tuple[str, ...] | str  # names (sorted), or one regular expression; () for none
    layers_to_transform: tuple[int, ...] | None  # sorted; None: all
    layers_pattern: tuple[str, ...]

    def rank_of(self, module_path: str) -> int:
        """LoRA rank of a module, e.g. of "model.layers.0.self_attn.q_proj"."""
        return _first_match(self.rank_pattern, module_path, self.rank)

    def scaling_of(self, module_path: str) -> float:
        """The factor on B·A: alpha / rank, or alpha / sqrt(rank) with rsLoRA."""
        rank = self.rank_of(module_path)
        alpha = _first_match(self.alpha_pattern, module_path, self.alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def selects(self, module_path: str) -> bool:
        """Whether PEFT would put LoRA on this linear module of a decoder layer."""
        if _is_named(self.exclude_modules, module_path):
            return False
        if self.target_modules == ALL_LINEAR:
            return True
        if not _is_named(self.target_modules, module_path):
            return False
        # PEFT ignores layers_to_transform beside a regular expression.
        return isinstance(self.target_modules, str) or self._selects_layer(module_path)

    def max_rank(self) -> int:
        """The largest rank that any module can have."""
        return max([self.rank, *(rank for _, rank in self.rank_pattern)])

    def canonical(self) -> dict[str, Any]:
        """The same for two configurations of equal meaning; JSON-serializable.

        Part of the package's digest.
        """
        return {
            "rank": self.rank,
            "alpha": self.alpha,
            "use_rslora": self.use_rslora,
            "rank_pattern": [list(item) for item in self.rank_pattern],
            "alpha_pattern": [list(item) for item in self.alpha_pattern],
            "target_modules": self.target_modules,
            "exclude_modules": self.exclude_modules,
            "layers_to_transform": self.layers_to_transform,
            "layers_pattern": self.layers_pattern,
        }

    def _selects_layer(self, module_path: str) -> bool:
        if self.layers_to_transform is None:
            return True
        layer = _layer_of(module_path, self.layers_pattern)
        return layer is not None and layer in self.layers_to_transform


def _first_match(pattern: tuple[tuple[str, T], ...], module_path: str, default: T) -> T:
    return next((value for key, value in pattern if _names_end_of(key, module_path)), default)


def _names_end_of(key: str, module_path: str) -> bool:
    suffix = as_suffix(key)
    if is_complex(key):
        return compile_pattern(suffix).matches_start(module_path)
    return re.match(suffix, module_path) is not None  # no backtracking; the common case, hundreds of keys


def as_suffix(key: str) -> str:
    """How PEFT reads a key of rank_pattern or alpha_pattern: a regular expression for the end of the path."""
    return rf"(.*\.)?({key})$"


def _is_named(names: tuple[str, ...] | str, module_path: str) -> bool:
    if isinstance(names, str):
        return compile_pattern(names).matches_whole(module_path)
    return any(module_path == name or module_path.endswith(f".{name}") for name in names)


def as_layers_prefix(pattern: str) -> str:
    """How PEFT reads an entry of layers_pattern: a regular expression for what precedes the number."""
    return rf"(?:^|.*\.){pattern}\."


def _layer_of(module_path: str, layers_pattern: tuple[str, ...]) -> int | None:
    """The number after the first part of the path that is followed by one, and matches a pattern if there
    are any.
    """
    parts = module_path.split(".")
    for i in range(1, len(parts) - 1):
        head = ".".join(parts[:i]) + "."
        if not parts[i].isdecimal():
            continue
        if not layers_pattern:
            return int(parts[i]) if i >= 2 else None
        if any(
            compile_pattern(as_layers_prefix(pattern) + "$").matches_start(head) for pattern in layers_pattern
        ):
            return int(parts[i])
    return None
