"""What happened in a job: numbered without gaps, kept in its folder, followed while it goes on."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from loraplex_adapters.errors import EventsExpiredError, FieldViolation, InvalidRequestError
from loraplex_adapters.storage_faults import disk_faults
from loraplex_server.errors import DrainingError

MAX_EVENTS = 10_000
"""Of one job; older ones are forgotten."""
_REWRITE_AT = 12_000  # lines of a file
_EVENTS_AT_ONCE = 500

log = logging.getLogger(__name__)


class EventDraft(msgspec.Struct, frozen=True, kw_only=True):
    """An event without its number."""

    kind: str  # state, stage, step, metrics, log, warning
    stage: str = ""
    state: str = ""
    step: int = 0
    num_steps: int = 0
    values: dict[str, float] = {}
    text: str = ""


class JobEvent(EventDraft, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that happened."""

    sequence: int  # 1, 2, …
    at: datetime  # UTC


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(JobEvent)


class EventLog:
    """A job's events. Owned by the event loop; the file is read and written in threads."""

    def __init__(self, file: Path, events: list[JobEvent], num_lines: int) -> None:
        self._file = file
        self._events = deque(events, MAX_EVENTS)
        self._num_lines = num_lines
        self._writing = asyncio.Lock()
        self._grown = asyncio.Event()  # set once, then replaced
        self._is_over = True
        self._is_abandoned = False

    @classmethod
    async def open(cls, file: Path) -> EventLog:
        """What there is of it. Raises StorageError."""
        events, num_lines = await asyncio.to_thread(_read, file)
        return cls(file, events, num_lines)

    @property
    def newest(self) -> int:
        """Sequence of the newest event; 0: there is none."""
        return self._events[-1].sequence if self._events else 0

    def begin(self) -> None:
        """More will come: who follows waits for it."""
        self._is_over = False

    def end(self) -> None:
        """Nothing will come for now: who follows has seen all."""
        self._is_over = True
        self._wake()

    def abandon(self) -> None:
        """The server stops; the job will go on after its next start. Who follows is told."""
        self._is_abandoned = True
        self._wake()

    async def append(self, *drafts: EventDraft) -> None:
        """Number them, write them, and only then tell who follows: what was seen is there after a crash. A disk that
        fails keeps them in memory.
        """
        async with self._writing:
            now = datetime.now(UTC)
            events = [
                JobEvent(**msgspec.structs.asdict(draft), sequence=number, at=now)
                for number, draft in enumerate(drafts, self.newest + 1)
            ]
            try:
                await asyncio.to_thread(self._write, events)
            except OSError as error:
                log.error("a training job's events cannot be written", extra={"cause": str(error)})
            self._events.extend(events)
        self._wake()

    async def follow(self, after: int) -> AsyncIterator[JobEvent]:
        """Events behind a sequence, until the job has ended.

        Raises EventsExpiredError, InvalidRequestError, DrainingError.
        """
        if after > self.newest:
            message = f"the job has had {self.newest} events so far"
            raise InvalidRequestError([FieldViolation("after_sequence", message)])
        while True:
            if self._is_abandoned:
                raise DrainingError(
                    "the server is stopping; follow the job again later, from the last event on"
                )
            grown, is_over = self._grown, self._is_over
            events = self._behind(after)
            for event in events:
                yield event
                after = event.sequence
            if not events:
                if is_over:
                    return
                await grown.wait()

    def _behind(self, after: int) -> list[JobEvent]:
        if not self._events or after >= self.newest:
            return []
        oldest = self._events[0].sequence
        if after and after < oldest - 1:
            raise EventsExpiredError("events from there on are not kept any more; begin again at 0")
        start = max(0, after + 1 - oldest)
        stop = min(len(self._events), start + _EVENTS_AT_ONCE)
        return [self._events[index] for index in range(start, stop)]

    def _wake(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()

    def _write(self, events: list[JobEvent]) -> None:
        lines = b"".join(_encoder.encode(event) + b"\n" for event in events)
        if self._num_lines + len(events) > _REWRITE_AT:
            kept = b"".join(_encoder.encode(event) + b"\n" for event in self._events)
            part = self._file.with_suffix(".part")
            part.write_bytes(kept + lines)
            os.replace(part, self._file)
            self._num_lines = len(self._events) + len(events)
            return
        with self._file.open("ab") as file:
            file.write(lines)
        self._num_lines += len(events)


def _read(file: Path) -> tuple[list[JobEvent], int]:
    """The events and the number of lines. A last line that a crash cut off is removed."""
    with disk_faults():
        if not file.exists():
            return [], 0
        content = file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(file, len(whole))
    lines = whole.splitlines()
    try:
        return [_decoder.decode(line) for line in lines[-MAX_EVENTS:]], len(lines)
    except msgspec.MsgspecError:
        log.error("a training job's events are damaged; they begin anew")
        with disk_faults():
            file.unlink(missing_ok=True)
        return [], 0
