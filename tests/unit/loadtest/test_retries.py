"""When a request is sent again."""

from __future__ import annotations

import pytest

from loraplex_client.service_config import MAX_ATTEMPTS
from loraplex_loadtest.disturbances.schedule import Behaviour
from loraplex_loadtest.running.ledger import Ledger, RequestSink
from loraplex_loadtest.running.retries import Retries
from tests.unit.loadtest.builders import record


@pytest.mark.parametrize(
    ("status", "retry_after_s", "pause_s"),
    [
        ("UNAVAILABLE", None, 0.1),
        ("RESOURCE_EXHAUSTED", 0.7, 0.7),
        ("RESOURCE_EXHAUSTED", None, None),
        ("INVALID_ARGUMENT", 0.7, None),
        ("CANCELLED_BY_PLAN", None, None),
    ],
)
def test_only_what_may_succeed_later_is_sent_again(
    status: str, retry_after_s: float | None, pause_s: float | None
) -> None:
    assert Retries(True).pause_s(record(0, 0, status=status), retry_after_s, 10) == pause_s
    assert Retries(False).pause_s(record(0, 0, status=status), retry_after_s, 10) is None


def test_attempts_end_at_their_number_and_at_the_deadline() -> None:
    retries = Retries(True)

    pauses = [
        retries.pause_s(record(0, 0, status="UNAVAILABLE", attempts=number), None, 10)
        for number in range(1, MAX_ATTEMPTS + 1)
    ]

    assert pauses == [0.1, 0.2, 0.4, None]
    assert Retries(True).pause_s(record(0, 0, status="UNAVAILABLE"), None, 0.1) is None


def test_a_server_that_fails_all_the_time_is_asked_once_only_until_it_answers_again() -> None:
    retries, failed = Retries(True), record(0, 0, status="UNAVAILABLE")

    pauses = [retries.pause_s(failed, None, 10) for _ in range(8)]
    for _ in range(60):
        retries.succeeded()

    assert [pause is None for pause in pauses] == [False] * 4 + [True] * 4
    assert retries.pause_s(failed, None, 10) == 0.1


def test_an_attempt_that_the_server_may_have_begun_counts_as_a_stream_that_was_cut() -> None:
    refused, lost = record(0, 0), record(1, 0)
    for one, status in ((refused, "RESOURCE_EXHAUSTED"), (lost, "UNAVAILABLE")):
        sink = RequestSink(Ledger(), one, Behaviour())
        sink.failed(status, "", 1.0)
        sink.attempt_again()
        sink.counted(1, 4)

    assert [(one.attempts, one.was_cut) for one in (refused, lost)] == [(2, False), (2, True)]
