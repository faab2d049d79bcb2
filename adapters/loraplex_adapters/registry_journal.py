"""What the registry keeps besides adapters: its revision, the events of a week, the answers of a day."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, insert, select, update

from loraplex_adapters.adapter_snapshots import from_text, to_text
from loraplex_adapters.errors import EventsExpiredError, RequestIdReusedError
from loraplex_adapters.names import AdapterName
from loraplex_adapters.registry_database import from_us, to_us
from loraplex_adapters.registry_schema import events, registry_meta, request_ids
from loraplex_adapters.releases import Adapter, AdapterEvent, EventKind

EVENTS_KEPT = timedelta(days=7)
REQUEST_IDS_KEPT = timedelta(days=1)
_PRUNING_INTERVAL = timedelta(minutes=10)
_PRUNED_AT_ONCE = 10_000  # events, so that no writer waits long for the first pruning after a busy time


@dataclass(frozen=True, slots=True)
class Once:
    """Idempotency of one write."""

    request_id: str  # among those of the tenant whose adapter it changes
    content: str  # hex hash of everything else in the request


@dataclass(frozen=True, slots=True)
class Answered:
    """The first answer to a request id."""

    adapter: Adapter | None  # None: it was deleted


class Journal:
    """The journal in one writing transaction, which it makes the only one: events are numbered in order of commits."""

    def __init__(self, connection: Connection, now: datetime) -> None:
        """Wait until no other transaction holds the journal."""
        self._connection = connection
        self.now = now
        query = select(registry_meta).where(registry_meta.c.id == 1).with_for_update()
        row = connection.execute(query).one()
        self.revision: int = row.revision
        self._is_pruning_due = row.pruned_at_us <= to_us(now - _PRUNING_INTERVAL)

    def answer_to(self, tenant: str, once: Once | None) -> Answered | None:
        """What was answered when the request came first; None if it is new. Raises RequestIdReusedError."""
        if once is None:
            return None
        oldest_us = to_us(self.now - REQUEST_IDS_KEPT)
        query = select(request_ids).where(request_ids.c.request_id == _key(tenant, once))
        row = self._connection.execute(query.where(request_ids.c.at_us > oldest_us)).one_or_none()
        if row is None:
            return None
        if row.content != once.content:
            raise RequestIdReusedError(
                "the request_id was used within a day for a request of other content; choose a new one"
            )
        return Answered(from_text(row.answer) if row.answer is not None else None)

    def remember(self, tenant: str, once: Once | None, answer: Adapter | None) -> None:
        """Keep the answer to a request that `answer_to` did not know."""
        if once is None:
            return
        # One that is too old to be known may still have its row.
        key = _key(tenant, once)
        self._connection.execute(delete(request_ids).where(request_ids.c.request_id == key))
        self._connection.execute(
            insert(request_ids).values(
                request_id=key,
                content=once.content,
                answer=to_text(answer) if answer is not None else None,
                at_us=to_us(self.now),
            )
        )

    def append(self, kind: EventKind, name: AdapterName, digest: str, aliases: Iterable[str]) -> None:
        """Write the event of the next revision; now and then, remove old rows."""
        self.revision += 1
        self._connection.execute(
            insert(events).values(
                revision=self.revision,
                kind=kind.value,
                tenant=name.tenant,
                adapter=name.adapter,
                digest=digest,
                alias=" ".join(aliases),
                at_us=to_us(self.now),
            )
        )
        self._connection.execute(update(registry_meta).values(revision=self.revision))
        if self._is_pruning_due:
            self._prune()

    def _prune(self) -> None:
        old_ids = request_ids.c.at_us <= to_us(self.now - REQUEST_IDS_KEPT)
        self._connection.execute(delete(request_ids).where(old_ids))
        self._connection.execute(update(registry_meta).values(pruned_at_us=to_us(self.now)))
        oldest = self._connection.scalar(select(events.c.revision).order_by(events.c.revision).limit(1))
        # In order of revisions, this reads no more than it removes. The event just written is always kept.
        is_young = events.c.at_us > to_us(self.now - EVENTS_KEPT)
        youngest_kept = select(events.c.revision).where(is_young).order_by(events.c.revision).limit(1)
        first_kept = self._connection.scalar(youngest_kept)
        assert oldest is not None
        assert first_kept is not None
        through = min(first_kept - 1, oldest + _PRUNED_AT_ONCE)
        if through >= oldest:
            self._connection.execute(delete(events).where(events.c.revision <= through))
            self._connection.execute(update(registry_meta).values(pruned_revision=through))


def read_revision(connection: Connection) -> int:
    """That of the newest event."""
    return int(connection.execute(select(registry_meta.c.revision)).scalar_one())


def read_events(
    connection: Connection, after_revision: int, limit: int, tenant: str | None, name: AdapterName | None
) -> list[AdapterEvent]:
    """Up to `limit` events behind a revision, oldest first; behind 0, from the oldest that is kept.

    Raises EventsExpiredError.
    """
    meta = connection.execute(select(registry_meta)).one()
    if after_revision and not meta.pruned_revision <= after_revision <= meta.revision:
        raise EventsExpiredError(
            "events from there on are not kept any more, or not of this registry; list the adapters, and watch from now"
        )
    query = select(events).where(events.c.revision > after_revision).order_by(events.c.revision).limit(limit)
    if tenant is not None:
        query = query.where(events.c.tenant == tenant)
    if name is not None:
        query = query.where((events.c.tenant == name.tenant) & (events.c.adapter == name.adapter))
    return [
        AdapterEvent(
            revision=row.revision,
            kind=EventKind(row.kind),
            name=AdapterName(row.tenant, row.adapter),
            digest=row.digest,
            aliases=tuple(row.alias.split()),
            at=from_us(row.at_us),
        )
        for row in connection.execute(query)
    ]


def _key(tenant: str, once: Once) -> str:
    """Of an id among those of all tenants, who choose theirs without knowing of one another."""
    return f"{tenant}/{once.request_id}"
