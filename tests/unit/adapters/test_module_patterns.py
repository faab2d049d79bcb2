from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex_adapters.errors import AdapterInvalidError
from loraplex_adapters.module_patterns import compile_pattern

ATOMS = [
    "a",
    "b",
    ".",
    r"\.",
    "[ab]",
    "[^a]",
    r"\d",
    r"\w",
    "(a|b)",
    "(?:ab|)",
    r"\b",
    "^",
    "$",
    "q_proj",
    "[0-2]",
]
QUANTIFIERS = ["", "", "", "*", "+", "?", "*?", "{2}", "{1,3}", "{2,}"]
PIECES = st.tuples(st.sampled_from(ATOMS), st.sampled_from(QUANTIFIERS)).map(
    lambda piece: piece[0] + ("" if piece[0] in (r"\b", "^", "$") else piece[1])
)
PATTERNS = st.recursive(
    st.lists(PIECES, max_size=4).map("".join),
    lambda inner: st.tuples(inner, inner, st.sampled_from(["", "*", "{0,2}"])).map(
        lambda t: f"({t[0]}|{t[1]}){t[2]}"
    ),
    max_leaves=4,
)


@given(PATTERNS, st.text("ab.q_proj01", max_size=10))
def test_a_pattern_matches_exactly_what_re_matches(pattern: str, path: str) -> None:
    compiled = compile_pattern(pattern)

    assert compiled.matches_whole(path) == (re.fullmatch(pattern, path) is not None)
    assert compiled.matches_start(path) == (re.match(pattern, path) is not None)


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|a)*b", "(.*.*)*b", "((a?){200}){200}b", "(a*)*(a*)*(a*)*b"]
)
def test_no_pattern_takes_long(pattern: str) -> None:
    begin = time.perf_counter()

    assert not compile_pattern(pattern).matches_whole("a" * 60)

    assert time.perf_counter() - begin < 10  # backtracking would take years


@pytest.mark.parametrize(
    "pattern",
    ["(", "a{5,2}", "[z-a]", "(?=a)", r"(a)\1", "(?i)a", "(?i:a)", "(?>a)", "a*+", "a" * 2000, "(" * 200],
)
def test_a_malformed_or_refused_pattern_is_an_invalid_adapter(pattern: str) -> None:
    with pytest.raises(AdapterInvalidError, match="pattern"):
        compile_pattern(pattern)


@given(st.text(max_size=20))
def test_any_text_compiles_or_is_an_invalid_adapter(pattern: str) -> None:
    try:
        compile_pattern(pattern).matches_whole("model.layers.0.self_attn.q_proj")
    except AdapterInvalidError:
        return
    re.compile(pattern)
