"""A job's events are numbered without gaps, survive a crash, and can be followed from anywhere."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from loraplex_adapters.errors import EventsExpiredError, InvalidRequestError
from loraplex_server.errors import DrainingError
from loraplex_server.training import event_log
from loraplex_server.training.event_log import EventDraft, EventLog, JobEvent


def draft(number: int) -> EventDraft:
    return EventDraft(kind="log", text=str(number))


async def events_of(log: EventLog, after: int = 0) -> list[JobEvent]:
    return [event async for event in log.follow(after)]


async def test_events_are_there_again_after_a_restart(tmp_path: Path) -> None:
    log = await EventLog.open(tmp_path / "events.jsonl")
    await log.append(draft(1), EventDraft(kind="metrics", stage="gate", values={"a": 1.5}))

    again = await EventLog.open(tmp_path / "events.jsonl")
    await again.append(draft(3))

    events = await events_of(again)
    assert [event.sequence for event in events] == [1, 2, 3]
    assert events[:2] == await events_of(log)
    assert events[1].values == {"a": 1.5}


async def test_a_line_that_a_crash_cut_off_is_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    log = await EventLog.open(file)
    await log.append(draft(1), draft(2))
    file.write_bytes(file.read_bytes()[:-5])

    again = await EventLog.open(file)
    await again.append(draft(3))

    assert [(event.sequence, event.text) for event in await events_of(again)] == [(1, "1"), (2, "3")]
    assert (await EventLog.open(file)).newest == 2


async def test_a_follower_sees_what_is_yet_to_come_until_the_end(tmp_path: Path) -> None:
    log = await EventLog.open(tmp_path / "events.jsonl")
    log.begin()
    await log.append(draft(1))
    following = asyncio.create_task(events_of(log))
    for number in range(2, 5):
        await asyncio.sleep(0)
        await log.append(draft(number))
    log.end()

    assert [event.text for event in await following] == ["1", "2", "3", "4"]


async def test_a_follower_is_told_when_the_server_stops(tmp_path: Path) -> None:
    log = await EventLog.open(tmp_path / "events.jsonl")
    log.begin()
    following = asyncio.create_task(events_of(log))
    await asyncio.sleep(0)

    log.abandon()

    with pytest.raises(DrainingError):
        await following


async def test_of_very_many_events_the_newest_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "MAX_EVENTS", 10)
    monkeypatch.setattr(event_log, "_REWRITE_AT", 15)
    file = tmp_path / "events.jsonl"
    log = await EventLog.open(file)
    for number in range(1, 41):
        await log.append(draft(number))

    again = await EventLog.open(file)

    for one in (log, again):
        assert [event.sequence for event in await events_of(one)] == list(range(31, 41))
        assert [event.sequence for event in await events_of(one, 35)] == list(range(36, 41))
        assert await events_of(one, 40) == []
        with pytest.raises(EventsExpiredError):
            await events_of(one, 5)
        with pytest.raises(InvalidRequestError):
            await events_of(one, 41)
    assert len(file.read_bytes().splitlines()) <= 15


async def test_events_of_many_writers_are_numbered_without_gaps(tmp_path: Path) -> None:
    log = await EventLog.open(tmp_path / "events.jsonl")

    await asyncio.gather(*(log.append(draft(number), draft(number)) for number in range(20)))

    assert [event.sequence for event in await events_of(log)] == list(range(1, 41))
    assert await events_of(await EventLog.open(tmp_path / "events.jsonl")) == await events_of(log)
