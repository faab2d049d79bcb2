"""A completion grows from the engine's outputs: text, stop strings, ends, failures."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraplex_adapters.errors import AdapterInvalidError, AdapterUnavailableError
from loraplex_server.detokenizer import Detokenizer, StopStrings
from loraplex_server.engine.messages import (
    FinishReason,
    SamplingParams,
    SequenceTimings,
    TokenLogprob,
    TokenOutput,
)
from loraplex_server.errors import ContextOverflowError, SequenceFailedError
from loraplex_server.generation import Finished, TextDelta, _Completion
from tests.unit.server.test_detokenizer import naive_cut
from tests.unit.server.tokenizers import CORPUS, byte_level

BACKEND = byte_level()
END = BACKEND.token_to_id("<|im_end|>")
TIMINGS = SequenceTimings(0.1, 0.2, 0.3, 0.4)


def completion(*stops: str, min_tokens: int = 0) -> _Completion:
    return _Completion(
        Detokenizer(BACKEND), StopStrings(stops), SamplingParams(min_tokens=min_tokens), num_prompt_tokens=7
    )


def outputs_of(ids: list[int], finish_reason: FinishReason | None) -> list[TokenOutput]:
    """As the engine sends them: a token each, the reason with the last."""
    last = len(ids) - 1
    return [
        TokenOutput(1, [token_id], finish_reason if index == last else None, timings=TIMINGS)
        for index, token_id in enumerate(ids)
    ]


def ids_of(text: str) -> list[int]:
    ids: list[int] = BACKEND.encode(text).ids
    return ids


def feed(grown: _Completion, outputs: list[TokenOutput], at_once: int = 1) -> list[TextDelta]:
    """Outputs in portions, until the completion is over."""
    deltas = []
    for first in range(0, len(outputs), at_once):
        if grown.finish_reason is None:
            delta = grown.add(outputs[first : first + at_once])
            if delta is not None:
                deltas.append(delta)
    return deltas


def text_of(deltas: list[TextDelta]) -> str:
    return "".join(delta.text for delta in deltas)


def test_the_token_that_ended_a_completion_counts_but_does_not_show() -> None:
    grown = completion()
    ids = [*ids_of("hello"), ids_of("!")[0]]

    deltas = feed(grown, outputs_of(ids, FinishReason.STOP))

    assert text_of(deltas) == "hello"
    assert [token_id for delta in deltas for token_id in delta.token_ids] == ids
    assert grown.is_ended_by_engine
    assert grown.finished() == Finished(FinishReason.STOP, 7, 0, len(ids), TIMINGS)


def test_the_last_token_of_a_completion_that_is_long_enough_shows() -> None:
    grown = completion()
    deltas = feed(grown, outputs_of(ids_of("hello"), FinishReason.LENGTH))
    assert text_of(deltas) == "hello"
    assert grown.finish_reason is FinishReason.LENGTH


def test_an_end_inside_a_character_shows_a_replacement_character() -> None:
    grown = completion()
    deltas = feed(grown, outputs_of(ids_of("a😀")[:-1], FinishReason.LENGTH))
    assert text_of(deltas) == "a\ufffd"


def test_a_stop_string_ends_the_completion_before_the_engine_does() -> None:
    grown = completion("STOP")

    deltas = feed(grown, outputs_of(ids_of("go STOP on and on"), FinishReason.LENGTH))

    assert text_of(deltas) == "go "
    assert grown.finish_reason is FinishReason.STOP
    assert not grown.is_ended_by_engine, "the engine has still to be told"


def test_a_stop_string_that_is_complete_with_the_last_token_is_a_stop() -> None:
    grown = completion("STOP")
    deltas = feed(grown, outputs_of(ids_of("go STOP"), FinishReason.LENGTH))
    assert text_of(deltas) == "go "
    assert grown.finish_reason is FinishReason.STOP
    assert grown.is_ended_by_engine


def test_the_beginning_of_a_stop_string_shows_once_the_completion_ends_without_the_rest() -> None:
    grown = completion("STOPPED")
    deltas = feed(grown, outputs_of(ids_of("go STOP"), FinishReason.LENGTH))
    assert text_of(deltas[:-1]) == "go "
    assert text_of(deltas) == "go STOP"
    assert grown.finish_reason is FinishReason.LENGTH


def test_tokens_after_a_stop_string_are_neither_counted_nor_shown() -> None:
    grown = completion("S")
    ids = ids_of("aSbbbb")
    deltas = feed(grown, outputs_of(ids, FinishReason.LENGTH), at_once=len(ids))
    assert text_of(deltas) == "a"
    assert grown.finished().num_completion_tokens == sum(len(delta.token_ids) for delta in deltas) == 2


def test_a_stop_string_before_min_tokens_is_text() -> None:
    ids = ids_of("S1S2S3")
    assert len(ids) == 6
    grown = completion("S", min_tokens=4)
    deltas = feed(grown, outputs_of(ids, FinishReason.LENGTH))
    assert text_of(deltas) == "S1S2"
    assert grown.finish_reason is FinishReason.STOP


TEXT = st.lists(st.sampled_from([*CORPUS, "😀", "中文", "ab", "a", "b", " "]), min_size=1).map("".join)
STOPS = st.lists(st.sampled_from(["ab", "b a", "中", "the lazy", "文狐", "😀a"]), max_size=3)


@settings(max_examples=150, deadline=None)
@given(text=TEXT, stops=STOPS, at_once=st.integers(1, 7))
def test_the_deltas_joined_are_the_text_up_to_the_first_stop_string(
    text: str, stops: list[str], at_once: int
) -> None:
    grown = completion(*stops)

    deltas = feed(grown, outputs_of(ids_of(text), FinishReason.LENGTH), at_once)

    cut = naive_cut(text, stops)
    assert text_of(deltas) == text[:cut]
    assert grown.finish_reason is (FinishReason.LENGTH if cut is None else FinishReason.STOP)


def test_log_probabilities_come_with_their_tokens() -> None:
    grown = completion()
    [a, b] = ids_of("a") + ids_of("b")
    outputs = [TokenOutput(1, [token_id], None, [TokenLogprob(token_id, -0.5, [])]) for token_id in (a, b)]

    delta = grown.add(outputs)

    assert delta is not None
    assert [position.token_id for position in delta.logprobs] == delta.token_ids == [a, b]


def test_cached_tokens_and_timings_of_the_engine_are_passed_on() -> None:
    grown = completion()
    later = SequenceTimings(0.1, 0.2, 0.3, 9.9)
    [a, b] = ids_of("a") + ids_of("b")
    grown.add([TokenOutput(1, [a], None, cached_prompt_tokens=4, timings=TIMINGS)])
    grown.add([TokenOutput(1, [b], FinishReason.LENGTH, timings=later)])

    finished = grown.finished()

    assert (finished.num_cached_prompt_tokens, finished.num_completion_tokens) == (4, 2)
    assert finished.timings == later


def test_a_completion_cut_by_a_stop_string_counts_its_decode_time_itself() -> None:
    grown = completion("b")
    started_s = time.monotonic()
    feed(grown, outputs_of(ids_of("a") + ids_of("b"), None))

    timings = grown.finished().timings

    assert (timings.queue_s, timings.adapter_load_s, timings.prefill_s) == (0.1, 0.2, 0.3)
    assert 0 <= timings.decode_s <= time.monotonic() - started_s


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("ADAPTER_INVALID", AdapterInvalidError),
        ("ADAPTER_UNAVAILABLE", AdapterUnavailableError),
        ("CONTEXT_OVERFLOW", ContextOverflowError),
        ("SOMETHING_NEW", SequenceFailedError),
        (None, SequenceFailedError),
    ],
)
def test_a_failure_of_the_engine_is_raised_as_what_it_is(reason: str | None, error: type[Exception]) -> None:
    grown = completion()
    feed(grown, outputs_of(ids_of("some"), None))
    failure = TokenOutput(1, [], FinishReason.ERROR, error_reason=reason, error_message="it went wrong")

    with pytest.raises(error, match="it went wrong"):
        grown.add([failure])

    assert grown.is_ended_by_engine
