"""Pieces of text, joined, are the decoding of all tokens, and a stop string never shows, not even in part."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from loraplex_server.detokenizer import Detokenizer, StopStrings
from tests.unit.server.tokenizers import CORPUS, byte_fallback, byte_level, fallback_tokens, id_of

BYTE_LEVEL, BYTE_FALLBACK = byte_level(), byte_fallback()
TEXT = st.lists(
    st.sampled_from([*CORPUS, "é", "中文", "😀", "👩‍👩‍👧", " ", "\n", "a", "ß"]) | st.text(max_size=5)
).map("".join)


def pieces(backend: Tokenizer, ids: list[int]) -> list[str]:
    """What each token brings, and at last what the end brings."""
    detokenizer = Detokenizer(backend)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


@settings(max_examples=200, deadline=None)
@given(text=TEXT)
def test_the_pieces_of_an_encoded_text_are_the_text(text: str) -> None:
    assert "".join(pieces(BYTE_LEVEL, BYTE_LEVEL.encode(text).ids)) == text


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1), max_size=30))
def test_the_pieces_of_any_tokens_are_the_decoding_of_the_whole(ids: list[int]) -> None:
    assert "".join(pieces(BYTE_LEVEL, ids)) == BYTE_LEVEL.decode(ids, skip_special_tokens=True)


FALLBACK_RUN = st.sampled_from(["😀", "é", "中文", "\n"]).map(
    lambda text: fallback_tokens(BYTE_FALLBACK, text)
)
FALLBACK_WORD = st.integers(259, BYTE_FALLBACK.get_vocab_size() - 1).map(lambda token_id: [token_id])


@settings(max_examples=300, deadline=None)
@given(runs=st.lists(FALLBACK_RUN | FALLBACK_WORD, max_size=12))
def test_the_pieces_of_byte_tokens_that_make_characters_are_the_decoding_of_the_whole(
    runs: list[list[int]],
) -> None:
    ids = [token_id for run in runs for token_id in run]
    assert "".join(pieces(BYTE_FALLBACK, ids)) == BYTE_FALLBACK.decode(ids, skip_special_tokens=True)


@settings(max_examples=500, deadline=None)
@given(ids=st.lists(st.integers(0, BYTE_FALLBACK.get_vocab_size() - 1) | st.integers(190, 266), max_size=24))
def test_byte_tokens_that_make_no_characters_become_replacement_characters(ids: list[int]) -> None:
    """Decoding all bytes again would change what was shown already; so a bad byte spoils none before it."""
    shown = pieces(BYTE_FALLBACK, ids)

    whole = BYTE_FALLBACK.decode(ids, skip_special_tokens=True)
    if "�" not in whole:
        assert "".join(shown) == whole
    words = [token_id for token_id in ids if token_id >= 259]
    readable = "".join(shown).replace("�", "")
    assert len(readable) >= len(BYTE_FALLBACK.decode(words).strip())


def test_a_word_after_bad_bytes_keeps_its_space() -> None:
    ids = [
        id_of(BYTE_FALLBACK, "a"),
        *fallback_tokens(BYTE_FALLBACK, "é"),
        id_of(BYTE_FALLBACK, "<0xE4>"),
        id_of(BYTE_FALLBACK, "▁the"),
        id_of(BYTE_FALLBACK, "▁fox"),
    ]
    assert "".join(pieces(BYTE_FALLBACK, ids)) in ("aé� the fox", "aé�� the fox", "aé��� the fox")


@pytest.mark.parametrize("text", ["😀", "中文字", "👩‍👩‍👧", "é"])
def test_an_incomplete_character_is_held_back_until_it_is_whole(text: str) -> None:
    ids = BYTE_LEVEL.encode(text).ids
    shown = pieces(BYTE_LEVEL, ids)
    assert "�" not in "".join(shown)
    for length in range(len(ids) + 1):
        assert text.startswith("".join(shown[:length]))


def test_a_completion_cut_inside_a_character_ends_in_a_replacement_character() -> None:
    ids = BYTE_LEVEL.encode("a😀").ids
    assert len(ids) > 2
    assert "".join(pieces(BYTE_LEVEL, ids[:-1])) == "a�"


def test_special_tokens_are_not_part_of_the_text() -> None:
    ids = BYTE_LEVEL.encode("<|im_start|>hi<|im_end|>").ids
    assert "".join(pieces(BYTE_LEVEL, ids)) == "hi"


ALPHABET = "ab"
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=4), min_size=1, max_size=4)
PIECES = st.lists(st.text(ALPHABET, max_size=4), max_size=14)


def naive_cut(text: str, stops: list[str]) -> int | None:
    """Grow the text by a character at a time; cut where the first complete stop string begins."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return min(starts)
    return None


def naive_late_cut(text: str, num_early: int, stops: list[str]) -> int | None:
    """As `naive_cut`, of stop strings that end past the first `num_early` characters."""
    for end in range(num_early + 1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return min(starts)
    return None


def naive_held(text: str, stops: list[str]) -> int:
    """Length of the longest end of `text` that could become a stop string."""
    ends = [text[start:] for start in range(len(text))]
    return max((len(end) for end in ends if any(stop.startswith(end) for stop in stops)), default=0)


@settings(max_examples=500, deadline=None)
@given(stops=STOPS, parts=PIECES)
def test_stop_strings_cut_where_a_naive_search_does_and_hold_back_just_what_they_must(
    stops: list[str], parts: list[str]
) -> None:
    matcher = StopStrings(stops)
    pushed = shown = ""
    for part in parts:
        pushed += part
        shown += matcher.push(part)
        cut = naive_cut(pushed, stops)
        if cut is not None:
            assert matcher.is_matched
            assert shown == pushed[:cut]
            return
        assert not matcher.is_matched
        assert shown == pushed[: len(pushed) - naive_held(pushed, stops)]
    assert shown + matcher.flush() == pushed


@settings(max_examples=500, deadline=None)
@given(stops=STOPS, early=PIECES, late=PIECES)
def test_a_stop_string_may_begin_before_one_counts_but_must_end_after(
    stops: list[str], early: list[str], late: list[str]
) -> None:
    matcher = StopStrings(stops)
    shown = "".join(matcher.push(part, may_end=False) for part in early)
    assert not matcher.is_matched
    pushed = "".join(early)
    for part in late:
        pushed += part
        shown += matcher.push(part)
        cut = naive_late_cut(pushed, len("".join(early)), stops)
        assert matcher.is_matched == (cut is not None)
        if cut is not None:
            assert shown == pushed[:cut]
            return
    assert shown + matcher.flush() == pushed


def test_without_stop_strings_all_text_passes_at_once() -> None:
    matcher = StopStrings(())
    assert matcher.push("all of it") == "all of it"
    assert matcher.flush() == ""
    assert not matcher.is_matched


def test_of_two_stop_strings_complete_at_once_the_longer_counts() -> None:
    matcher = StopStrings(("end", "the end"))
    assert matcher.push("this is the en") == "this is "
    assert matcher.push("d of it") == ""
    assert matcher.is_matched
