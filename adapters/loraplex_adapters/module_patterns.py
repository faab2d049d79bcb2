"""Regular expressions of `adapter_config.json`, matched in polynomial time.

PEFT runs such patterns with `re`, which backtracks: a pattern of ten characters from a stranger's file can
keep a core busy for years. Here a pattern is parsed by Python's own parser, so it means the same, but is
matched by following the set of all positions it can have reached. Constructs for which that does not work
(look-around, back references, atomic groups, inline flags) are refused by name; they do not occur in real
configurations.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

from loraplex_adapters.errors import AdapterInvalidError

MAX_PATTERN_LENGTH = 1024
MAX_QUANTIFIERS = 32  # in one pattern
MAX_COMPLEX_PATTERNS = 8  # per field; plain module paths are not counted
_MAX_REPEAT_COUNT = 256  # {n} beyond the length of any module path cannot match, and would cost n rounds
_MAX_DEPTH = 32

# The parser has no public name since Python 3.11; its tree has been stable since 2.x.
_parser: Any = import_module("re._parser")

Positions = int  # bit i: position i of the path, counted from 0 to its length
_QUANTIFIER = re.compile(r"[*+?{]")
_BACKTRACKS = re.compile(r"[*+?{(|]")  # without any of these, `re` itself is linear
Node = Callable[["_Path", Positions], Positions]  # where a construct can end, given where it can begin

_CATEGORY = {
    "CATEGORY_DIGIT": re.compile(r"\d"),
    "CATEGORY_NOT_DIGIT": re.compile(r"\D"),
    "CATEGORY_SPACE": re.compile(r"\s"),
    "CATEGORY_NOT_SPACE": re.compile(r"\S"),
    "CATEGORY_WORD": re.compile(r"\w"),
    "CATEGORY_NOT_WORD": re.compile(r"\W"),
}


@dataclass(frozen=True, slots=True)
class _Path:
    """A module path, prepared for matching: where each of its characters stands."""

    text: str
    positions_of: dict[str, Positions]

    @property
    def end(self) -> Positions:
        """The position behind the last character."""
        return 1 << len(self.text)


@lru_cache(maxsize=1024)
def _prepare(text: str) -> _Path:
    positions_of: dict[str, Positions] = {}
    for i, character in enumerate(text):
        positions_of[character] = positions_of.get(character, 0) | 1 << i
    return _Path(text, positions_of)


@dataclass(frozen=True, slots=True)
class ModulePattern:
    """A compiled pattern. Equal in meaning to `re.compile` for the constructs that are let through."""

    pattern: str
    _node: Node

    def matches_whole(self, path: str) -> bool:
        """As `re.fullmatch(pattern, path)` is not None. `path` is a module path, without line ends."""
        prepared = _prepare(path)
        return bool(self._node(prepared, 1) & prepared.end)

    def matches_start(self, path: str) -> bool:
        """As `re.match(pattern, path)` is not None."""
        return bool(self._node(_prepare(path), 1))


def is_complex(pattern: str) -> bool:
    """Whether a pattern is more than a plain path, and so costs real time to match."""
    return _BACKTRACKS.search(pattern) is not None


@lru_cache(maxsize=4096)
def compile_pattern(pattern: str) -> ModulePattern:
    """Parse `pattern`. Raises AdapterInvalidError where it is malformed, too long or uses a refused
    construct.
    """
    if len(pattern) > MAX_PATTERN_LENGTH:
        raise AdapterInvalidError(
            f"a module pattern has {len(pattern)} characters; at most {MAX_PATTERN_LENGTH}"
        )
    if len(_QUANTIFIER.findall(pattern)) > MAX_QUANTIFIERS:
        raise AdapterInvalidError(
            f"module pattern {pattern[:80]!r} has more than {MAX_QUANTIFIERS} quantifiers"
        )
    try:
        tree = _parser.parse(pattern)
    except (re.error, OverflowError, RecursionError, ValueError, FutureWarning) as error:
        raise AdapterInvalidError(f"module pattern {pattern[:80]!r} is not a regular expression") from error
    if tree.state.flags & ~re.UNICODE:
        raise AdapterInvalidError(f"module pattern {pattern[:80]!r}: inline flags are not supported")
    return ModulePattern(pattern, _build_sequence(tree, pattern, depth=0))


def _build_sequence(items: Any, pattern: str, depth: int) -> Node:
    if depth > _MAX_DEPTH:
        raise AdapterInvalidError(f"module pattern {pattern[:80]!r} is nested more than {_MAX_DEPTH} deep")
    nodes = [_build(str(op), argument, pattern, depth) for op, argument in items]

    def follow(path: _Path, starts: Positions) -> Positions:
        for node in nodes:
            if not starts:
                break
            starts = node(path, starts)
        return starts

    return follow


def _build(op: str, argument: Any, pattern: str, depth: int) -> Node:
    if op == "LITERAL":
        character = chr(argument)
        return lambda path, starts: (starts & path.positions_of.get(character, 0)) << 1
    if op in ("NOT_LITERAL", "ANY", "IN"):
        return _any_character(_character_test(op, argument, pattern))
    if op in ("MAX_REPEAT", "MIN_REPEAT"):
        low, high, body = argument
        return _repeat(low, high, _build_sequence(body, pattern, depth + 1), pattern)
    if op == "BRANCH":
        return _either([_build_sequence(branch, pattern, depth + 1) for branch in argument[1]])
    if op == "SUBPATTERN":
        _, flags_on, flags_off, body = argument
        if not flags_on and not flags_off:
            return _build_sequence(body, pattern, depth + 1)
    if op == "AT" and str(argument) in ("AT_BOUNDARY", "AT_NON_BOUNDARY"):
        edge = re.compile(r"\b" if str(argument) == "AT_BOUNDARY" else r"\B")
        return lambda path, starts: starts & _positions_where(edge, path)
    if op == "AT" and str(argument) in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
        return lambda path, starts: starts & 1
    if op == "AT" and str(argument) in ("AT_END", "AT_END_STRING"):
        return lambda path, starts: starts & path.end
    raise AdapterInvalidError(f"module pattern {pattern[:80]!r}: {op.lower()} is not supported")


def _any_character(accepts: Callable[[str], bool]) -> Node:
    def follow(path: _Path, starts: Positions) -> Positions:
        accepted = 0
        for character, positions in path.positions_of.items():
            if starts & positions and accepts(character):
                accepted |= positions
        return (starts & accepted) << 1

    return follow


def _positions_where(edge: re.Pattern[str], path: _Path) -> Positions:
    return sum(1 << i for i in range(len(path.text) + 1) if edge.match(path.text, i))


def _character_test(op: str, argument: Any, pattern: str) -> Callable[[str], bool]:
    if op == "LITERAL":
        return lambda character: ord(character) == argument
    if op == "NOT_LITERAL":
        return lambda character: ord(character) != argument
    if op == "ANY":
        return lambda character: character != "\n"
    if op == "RANGE":
        low, high = argument
        return lambda character: low <= ord(character) <= high
    if op == "CATEGORY" and str(argument) in _CATEGORY:
        category = _CATEGORY[str(argument)]
        return lambda character: category.match(character) is not None
    if op == "IN":
        negated = str(argument[0][0]) == "NEGATE"
        members = argument[1:] if negated else argument
        tests = [_character_test(str(kind), value, pattern) for kind, value in members]
        return lambda character: any(test(character) for test in tests) != negated
    raise AdapterInvalidError(f"module pattern {pattern[:80]!r}: {op.lower()} is not supported")


def _either(branches: list[Node]) -> Node:
    def follow(path: _Path, starts: Positions) -> Positions:
        ends = 0
        for branch in branches:
            ends |= branch(path, starts)
        return ends

    return follow


def _repeat(low: int, high: int, body: Node, pattern: str) -> Node:
    if low > _MAX_REPEAT_COUNT:
        raise AdapterInvalidError(
            f"module pattern {pattern[:80]!r} repeats more than {_MAX_REPEAT_COUNT} times"
        )

    def follow(path: _Path, starts: Positions) -> Positions:
        for _ in range(low):
            following = body(path, starts)
            if following == starts:
                break
            starts = following
        reached = frontier = starts
        # Each round adds a position or ends the loop, so there are at most as many as positions.
        for _ in range(min(high - low, len(path.text) + 1)):
            frontier = body(path, frontier) & ~reached
            if not frontier:
                break
            reached |= frontier
        return reached

    return follow
