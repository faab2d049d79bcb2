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
MAX_COMPLEX_PATTERNS = 16  # per field; plain module paths are not counted
_MAX_REPEAT_COUNT = 256  # {n} beyond the length of any module path cannot match, and would cost n rounds
_MAX_DEPTH = 32

# The parser has no public name since Python 3.11; its tree has been stable since 2.x.
_parser: Any = import_module("re._parser")

Positions = frozenset[int]
_BACKTRACKS = re.compile(r"[*+?{(|]")  # without any of these, `re` itself is linear
Node = Callable[[str, Positions], Positions]  # where a construct can end, given where it can begin

_CATEGORY = {
    "CATEGORY_DIGIT": re.compile(r"\d"),
    "CATEGORY_NOT_DIGIT": re.compile(r"\D"),
    "CATEGORY_SPACE": re.compile(r"\s"),
    "CATEGORY_NOT_SPACE": re.compile(r"\S"),
    "CATEGORY_WORD": re.compile(r"\w"),
    "CATEGORY_NOT_WORD": re.compile(r"\W"),
}


@dataclass(frozen=True, slots=True)
class ModulePattern:
    """A compiled pattern. Equal in meaning to `re.compile(pattern)` for the constructs that are let
    through.
    """

    pattern: str
    _node: Node

    def matches_whole(self, path: str) -> bool:
        """As `re.fullmatch(pattern, path)` is not None. `path` is a module path, without line ends."""
        return len(path) in self._node(path, frozenset({0}))

    def matches_start(self, path: str) -> bool:
        """As `re.match(pattern, path)` is not None."""
        return bool(self._node(path, frozenset({0})))


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
    try:
        tree = _parser.parse(pattern)
    except (re.error, OverflowError, RecursionError, ValueError) as error:
        raise AdapterInvalidError(f"module pattern {pattern[:80]!r} is not a regular expression") from error
    if tree.state.flags & ~re.UNICODE:
        raise AdapterInvalidError(f"module pattern {pattern[:80]!r}: inline flags are not supported")
    return ModulePattern(pattern, _build_sequence(tree, pattern, depth=0))


def _build_sequence(items: Any, pattern: str, depth: int) -> Node:
    if depth > _MAX_DEPTH:
        raise AdapterInvalidError(f"module pattern {pattern[:80]!r} is nested more than {_MAX_DEPTH} deep")
    nodes = [_build(str(op), argument, pattern, depth) for op, argument in items]

    def follow(text: str, starts: Positions) -> Positions:
        for node in nodes:
            if not starts:
                break
            starts = node(text, starts)
        return starts

    return follow


def _build(op: str, argument: Any, pattern: str, depth: int) -> Node:
    if op in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
        return _single_character(_character_test(op, argument, pattern))
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
        return lambda text, starts: frozenset(i for i in starts if edge.match(text, i))
    if op == "AT" and str(argument) in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
        return lambda text, starts: starts & {0}
    if op == "AT" and str(argument) in ("AT_END", "AT_END_STRING"):
        return lambda text, starts: starts & {len(text)}
    raise AdapterInvalidError(f"module pattern {pattern[:80]!r}: {op.lower()} is not supported")


def _single_character(accepts: Callable[[str], bool]) -> Node:
    def follow(text: str, starts: Positions) -> Positions:
        return frozenset(i + 1 for i in starts if i < len(text) and accepts(text[i]))

    return follow


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
    return lambda text, starts: frozenset().union(*(branch(text, starts) for branch in branches))


def _repeat(low: int, high: int, body: Node, pattern: str) -> Node:
    if low > _MAX_REPEAT_COUNT:
        raise AdapterInvalidError(
            f"module pattern {pattern[:80]!r} repeats more than {_MAX_REPEAT_COUNT} times"
        )

    def follow(text: str, starts: Positions) -> Positions:
        for _ in range(low):
            following = body(text, starts)
            if following == starts:
                break
            starts = following
        reached = frontier = starts
        # Each round adds a position or ends the loop, so there are at most len(text) + 1 of them.
        for _ in range(min(high - low, len(text) + 1)):
            frontier = body(text, frontier) - reached
            if not frontier:
                break
            reached |= frontier
        return reached

    return follow
