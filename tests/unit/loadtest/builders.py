"""Scenarios and recordings that are small enough to be computed by hand."""

from __future__ import annotations

from typing import Any

from loraplex_loadtest.records import OK, DeltaLog, GeneratorLoad, Recording, RequestRecord
from loraplex_loadtest.scenario import Scenario, make_scenario


def scenario(*traffic: dict[str, Any], **keys: Any) -> Scenario:
    """One with constant arrivals of ten requests, unless told otherwise."""
    usual = {"arrivals": {"kind": "constant", "rate": 1, "duration_s": 10}, "adapters": {"names": ["red"]}}
    return make_scenario({"name": "made", "traffic": list(traffic) or [usual], **keys})


def record(index: int, intended_s: float, **fields: Any) -> RequestRecord:
    """A request of one prompt token that was sent in time, and ended well if a message of it is in the log."""
    usual: dict[str, Any] = {
        "traffic": "all",
        "tenant": "default",
        "adapter": "red",
        "sent_s": intended_s,
        "prompt_tokens": 1,
        "max_tokens": 4,
    }
    return RequestRecord(index=index, intended_s=intended_s, **{**usual, **fields})


def recording(messages: dict[int, list[tuple[float, int]]], *records: RequestRecord) -> Recording:
    """`messages` are (moment, tokens) by request index; they decide first, last and token count of their record."""
    log = DeltaLog()
    for at_s, index, tokens in sorted((at, index, n) for index, some in messages.items() for at, n in some):
        log.append(index, at_s, tokens)
    for one in records:
        if some := messages.get(one.index):
            one.first_s, one.last_s = some[0][0], some[-1][0]
            one.ended_s = one.last_s
            one.tokens = sum(tokens for _, tokens in some)
            if one.status == "UNFINISHED":
                one.status, one.usage_tokens = OK, one.tokens
        elif one.ended_s != one.ended_s:
            one.ended_s = one.sent_s
    return Recording.merge([(records, log, GeneratorLoad(0.1, len(log), 2, 10.0))])
