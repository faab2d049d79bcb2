from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from loraplex_client import Completion, FinishReason, InvalidRequestError, LoraplexClient
from tests.integration.live_server import LiveServer
from tests.integration.streams import GREEDY, PROMPT, collect
from tests.integration.tiny_base import END

LONG: dict[str, Any] = {**GREEDY, "adapter": "red", "max_tokens": 60}


@pytest.fixture(scope="module")
def shared_client(server: LiveServer) -> Iterator[LoraplexClient]:
    """For hypothesis, which wants no fixture of function scope."""
    with server.client() as made:
        yield made


@pytest.fixture(scope="module")
def whole(shared_client: LoraplexClient) -> Completion:
    """The answer that the tests cut short."""
    return shared_client.generate(PROMPT, **LONG)


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_base)


@settings(max_examples=40, deadline=None)
@given(start=st.integers(0, 50), length=st.integers(1, 12), decoy=st.text(max_size=3))
def test_a_stream_shows_exactly_what_precedes_the_stop_string(
    shared_client: LoraplexClient, whole: Completion, start: int, length: int, decoy: str
) -> None:
    stop = whole.text[start : start + length]
    stops = [stop, stop + "\0" + decoy]  # the second begins alike and never comes

    stream = collect(shared_client.stream(PROMPT, stop=stops, **LONG))

    assert stream.text == whole.text[: whole.text.find(stop)]
    assert stream.finished.finish_reason is FinishReason.STOP
    assert stream.token_ids == whole.token_ids[: len(stream.token_ids)]


def test_what_was_held_back_for_a_stop_string_that_never_came_arrives_at_the_end(
    client: LoraplexClient, whole: Completion
) -> None:
    stream = collect(client.stream(PROMPT, stop=[whole.text[-3:] + "\0"], **LONG))

    assert stream.text == whole.text
    assert stream.finished.finish_reason is FinishReason.LENGTH


def test_a_stop_string_is_found_across_tokens_and_costs_no_further_ones(
    client: LoraplexClient, whole: Completion
) -> None:
    stop = whole.text[10:22]

    answer = client.generate(PROMPT, stop=stop, **LONG)

    assert answer.usage.completion_tokens < whole.usage.completion_tokens
    assert len(answer.token_ids) == answer.usage.completion_tokens


def test_a_stop_token_ends_the_completion_and_is_no_part_of_its_text(
    client: LoraplexClient, whole: Completion, tokenizer: PreTrainedTokenizerBase
) -> None:
    stop_id = whole.token_ids[20]
    end = whole.token_ids.index(stop_id)

    answer = client.generate(PROMPT, stop_token_ids=[stop_id], **LONG)

    assert answer.finish_reason is FinishReason.STOP
    assert answer.token_ids == whole.token_ids[: end + 1]
    assert answer.text == tokenizer.decode(whole.token_ids[:end], skip_special_tokens=True)


def test_the_models_end_token_ends_the_completion(
    client: LoraplexClient, tokenizer: PreTrainedTokenizerBase
) -> None:
    end_id = tokenizer.convert_tokens_to_ids(END)

    answer = client.generate(PROMPT, temperature=0, logit_bias={end_id: 100.0}, include_token_ids=True)

    assert answer.finish_reason is FinishReason.STOP
    assert answer.token_ids == (end_id,)
    assert answer.text == ""


def test_the_end_token_is_ignored_if_so_told(
    client: LoraplexClient, tokenizer: PreTrainedTokenizerBase
) -> None:
    end_id = tokenizer.convert_tokens_to_ids(END)

    answer = client.generate(PROMPT, temperature=0, logit_bias={end_id: 100.0}, ignore_eos=True, max_tokens=7)

    assert answer.finish_reason is FinishReason.LENGTH
    assert answer.usage.completion_tokens == 7


def test_nothing_ends_a_completion_before_min_tokens(
    client: LoraplexClient, whole: Completion, tokenizer: PreTrainedTokenizerBase
) -> None:
    end_id = tokenizer.convert_tokens_to_ids(END)
    by_end = client.generate(PROMPT, temperature=0, logit_bias={end_id: 100.0}, min_tokens=9)
    by_id = client.generate(PROMPT, stop_token_ids=[whole.token_ids[0]], min_tokens=9, **LONG)
    by_string = client.generate(PROMPT, stop=whole.text[:1], min_tokens=9, **LONG)

    assert by_end.usage.completion_tokens >= 9
    assert by_end.finish_reason is FinishReason.STOP
    assert by_id.usage.completion_tokens >= 9
    assert by_string.usage.completion_tokens >= 9
    assert by_string.text.startswith(whole.text[:1])


@pytest.mark.parametrize("max_tokens", [1, 2, 33])
def test_max_tokens_is_exact(client: LoraplexClient, max_tokens: int) -> None:
    answer = client.generate(PROMPT, **{**LONG, "max_tokens": max_tokens})

    assert answer.finish_reason is FinishReason.LENGTH
    assert answer.usage.completion_tokens == max_tokens


def test_max_tokens_is_256_unless_given(client: LoraplexClient) -> None:
    assert client.generate(PROMPT, temperature=0, ignore_eos=True).usage.completion_tokens == 256


@pytest.mark.parametrize("max_tokens", [0, 20_001, 2**32 - 1])
def test_max_tokens_outside_of_the_servers_range_is_refused(client: LoraplexClient, max_tokens: int) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        client.generate(PROMPT, max_tokens=max_tokens)

    assert [violation.field for violation in caught.value.violations] == ["stopping.max_tokens"]


@pytest.mark.parametrize("options", [{"min_tokens": 9, "max_tokens": 8}, {"min_tokens": 300}], ids=str)
def test_min_tokens_above_max_tokens_is_refused(client: LoraplexClient, options: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        client.generate(PROMPT, **options)

    assert [violation.field for violation in caught.value.violations] == ["stopping.min_tokens"]
