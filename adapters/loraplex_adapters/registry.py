"""Which adapters exist: names, versions and what answers, in SQL, so that they survive a restart and servers may
share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from sqlalchemy import Connection, func, select, tuple_

from loraplex_adapters import registry_rows, release_changes
from loraplex_adapters.errors import (
    EtagMismatchError,
    QuotaExceededError,
    TooManyPinnedError,
)
from loraplex_adapters.filters import AdapterFilter
from loraplex_adapters.migrations import migrate
from loraplex_adapters.names import STABLE, AdapterName
from loraplex_adapters.pin_limits import PinLimits
from loraplex_adapters.registry_database import open_engine, reading, writing
from loraplex_adapters.registry_journal import Journal, Once, read_events, read_revision
from loraplex_adapters.registry_schema import adapters, versions
from loraplex_adapters.release_changes import Change, Release
from loraplex_adapters.releases import (
    Adapter,
    AdapterEvent,
    EventKind,
    OnExisting,
    Shadow,
    TrafficShare,
    Version,
)

__all__ = ["AdapterRegistry", "Once", "PinLimits", "Quota"]

_DIGESTS_AT_ONCE = 500  # in one statement


@dataclass(frozen=True, slots=True)
class Quota:
    """What one tenant may register; None: as much as it likes."""

    max_adapters: int | None = None
    max_bytes: int | None = None  # sum of size_bytes over the tenant's distinct digests


class AdapterRegistry:
    """Registered adapters. Calls block on the database (SQLite: well under 10 ms); any thread may make them.

    A write is one transaction: it is durable when the call returns, and moves the registry's revision by one, with one
    event, or changes nothing at all. Writes of all servers on one database happen one after another. Each takes

    etag   the adapter's revision as text, as the caller last read it; another is an EtagMismatchError; "": unchecked
    once   makes a repetition return the first answer and change nothing, for a day; the same id with other content is a
           RequestIdReusedError; None: every call counts

    and raises AdapterNotFoundError for a name, version or alias that is not there. A database that fails is a
    StorageError, in every call; a write may then have happened or not.
    """

    def __init__(
        self,
        url: str,
        quota: Quota = Quota(),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Open a database ("sqlite:////var/lib/loraplex/registry.db", "postgresql://user@host/name") and bring its
        tables up to date.
        """
        self._quota = quota
        self._clock = clock
        self.pin_limits: PinLimits | None = None  # None: any number; set by the server that knows its arena
        self._engine = open_engine(url)
        try:
            migrate(self._engine)
        except BaseException:
            self._engine.dispose()
            raise

    def get(self, name: AdapterName) -> Adapter:
        """Raises AdapterNotFoundError."""
        with reading(self._engine) as connection:
            return registry_rows.load(connection, name).adapter

    def list_page(
        self,
        page_size: int,
        after: AdapterName | None = None,
        tenant: str | None = None,
        where: AdapterFilter | None = None,
    ) -> list[Adapter]:
        """Up to `page_size` adapters in order of name, beginning after `after`; fewer mean that it was the last.

        Adapters registered or deleted between two pages shift no others.
        """
        query = select(adapters).order_by(adapters.c.tenant, adapters.c.adapter).limit(page_size)
        if tenant is not None:
            query = query.where(adapters.c.tenant == tenant)
        if after is not None:
            query = query.where(
                tuple_(adapters.c.tenant, adapters.c.adapter) > tuple_(after.tenant, after.adapter)
            )
        if where is not None:
            query = query.where(where.condition())
        with reading(self._engine) as connection:
            return [release.adapter for release in registry_rows.load_all(connection, query)]

    def count(self) -> int:
        """How many adapters there are."""
        with reading(self._engine) as connection:
            return connection.execute(select(func.count()).select_from(adapters)).scalar_one()

    def pinned(self) -> list[Adapter]:
        """All pinned adapters, in order of name."""
        with reading(self._engine) as connection:
            return _pinned(connection)

    def largest_version(self, base_fingerprint: str, at_most: int) -> int:
        """Elements of the largest version for a base, of those with no more than `at_most`; 0: there is none."""
        of_base = (versions.c.base_fingerprint == base_fingerprint) & (versions.c.num_elements <= at_most)
        with reading(self._engine) as connection:
            return connection.scalar(select(func.max(versions.c.num_elements)).where(of_base)) or 0

    def revision(self) -> int:
        """That of the newest event; 0 before the first."""
        with reading(self._engine) as connection:
            return read_revision(connection)

    def events(
        self,
        after_revision: int,
        limit: int,
        tenant: str | None = None,
        name: AdapterName | None = None,
    ) -> list[AdapterEvent]:
        """Up to `limit` events behind a revision, oldest first; behind 0, from the oldest event that is kept.

        Raises EventsExpiredError if some of them are not kept any more, or the revision is none of this registry.
        """
        with reading(self._engine) as connection:
            return read_events(connection, after_revision, limit, tenant, name)

    def referenced(self, digests: Iterable[str]) -> set[str]:
        """Those of `digests` that any version of any adapter has."""
        wanted = sorted(digests)
        found: set[str] = set()
        with reading(self._engine) as connection:
            for start in range(0, len(wanted), _DIGESTS_AT_ONCE):
                some = wanted[start : start + _DIGESTS_AT_ONCE]
                query = select(versions.c.digest).where(versions.c.digest.in_(some)).distinct()
                found.update(connection.scalars(query))
        return found

    def register(
        self,
        name: AdapterName,
        version: Version,
        *,
        on_existing: OnExisting = OnExisting.REFUSE,
        alias: str = "",
        labels: Mapping[str, str] | None = None,
        once: Once | None = None,
        is_trial: bool = False,
    ) -> Adapter:
        """Enter a version; the first of a name makes the adapter, is its "stable" and gives it `labels`.

        With `is_trial`, nothing is kept: the answer is what would come of it.
        A digest that the adapter has changes nothing, except that a FAILED version is READY again, that what it was
        proved against is renewed, and that aliases move as for a new version.
        Raises AdapterExistsError, TooManyVersionsError, VersionDeprecatedError, QuotaExceededError, TooManyPinnedError,
        InvalidRequestError for alias or labels.
        """
        with self._journal() as (connection, journal):
            if answered := journal.answer_to(name.tenant, once):
                return _still(answered.adapter)
            before = registry_rows.find(connection, name)
            change: Change | None
            if before is None:
                change = release_changes.new_release(name, version, alias, labels or {}, journal.now)
            else:
                change = release_changes.register(before, version, on_existing, alias)
            if before is None or version.digest not in {v.digest for v in before.adapter.versions}:
                self._check_quota(connection, name.tenant, version, is_new_name=before is None)
            if before is not None and change is not None:
                _check_room_for_pins(connection, self.pin_limits, before.adapter, change.release.adapter)
            adapter = self._commit(connection, journal, before, change)
            journal.remember(name.tenant, once, adapter)
            if is_trial:
                connection.rollback()
            return adapter

    def update_labels(
        self, name: AdapterName, labels: Mapping[str, str], *, etag: str = "", once: Once | None = None
    ) -> Adapter:
        """Replace all labels. Raises InvalidRequestError."""
        return self._change(name, etag, once, lambda release: release_changes.update_labels(release, labels))

    def promote(
        self, name: AdapterName, target: str, *, alias: str = STABLE, etag: str = "", once: Once | None = None
    ) -> Adapter:
        """Let an alias, made if need be, point at the version of a digest or another alias. Moving "stable" ends a
        split.

        Raises VersionDeprecatedError, AdapterUnavailableError for a FAILED version, InvalidRequestError.
        """
        return self._change(name, etag, once, lambda release: release_changes.promote(release, target, alias))

    def rollback(
        self, name: AdapterName, *, alias: str = STABLE, etag: str = "", once: Once | None = None
    ) -> Adapter:
        """Let an alias point where it pointed before, one step further back each time. "stable" ends a split.

        Raises NothingToRollBackError, AdapterUnavailableError for a FAILED version.
        """
        return self._change(name, etag, once, lambda release: release_changes.roll_back(release, alias))

    def delete_alias(
        self, name: AdapterName, alias: str, *, etag: str = "", once: Once | None = None
    ) -> Adapter:
        """Remove an alias. Raises AliasInUseError."""
        return self._change(name, etag, once, lambda release: release_changes.delete_alias(release, alias))

    def split(
        self,
        name: AdapterName,
        traffic: Sequence[TrafficShare],
        *,
        etag: str = "",
        once: Once | None = None,
    ) -> Adapter:
        """Spread the bare name's requests; none ends the split.

        Raises InvalidRequestError, AdapterUnavailableError, and VersionDeprecatedError for one that the bare name does
        not serve yet.
        """
        return self._change(name, etag, once, lambda release: release_changes.split(release, traffic))

    def set_shadow(
        self, name: AdapterName, shadow: Shadow | None, *, etag: str = "", once: Once | None = None
    ) -> Adapter:
        """Let a version answer unseen, or none.

        Raises InvalidRequestError, AdapterUnavailableError, and VersionDeprecatedError for one that does not yet.
        """
        return self._change(name, etag, once, lambda release: release_changes.set_shadow(release, shadow))

    def set_pinned(
        self,
        name: AdapterName,
        is_pinned: bool,
        *,
        max_pinned: int,
        etag: str = "",
        once: Once | None = None,
    ) -> Adapter:
        """Keep what the bare name serves resident, or let go of it.

        Raises TooManyPinnedError if pinned names would then serve more than `max_pinned` versions.
        """
        return self._change(
            name,
            etag,
            once,
            lambda release: release_changes.set_pinned(release, is_pinned),
            lambda connection, after: _check_pins(connection, after, max_pinned),
        )

    def deprecate(
        self, name: AdapterName, target: str, *, undo: bool = False, etag: str = "", once: Once | None = None
    ) -> Adapter:
        """Mark the version of a digest as one to move away from, or take the mark back.

        Raises InvalidRequestError, AdapterUnavailableError for a FAILED version.
        """
        return self._change(
            name, etag, once, lambda release: release_changes.deprecate(release, target, undo)
        )

    def mark_failed(self, name: AdapterName, digest: str) -> Adapter:
        """A version's stored package turned out missing or damaged."""
        return self._change(name, "", None, lambda release: release_changes.mark_failed(release, digest))

    def delete_version(
        self, name: AdapterName, target: str, *, etag: str = "", once: Once | None = None
    ) -> Adapter:
        """Remove the version of a digest; its package stays. Raises InvalidRequestError, VersionInUseError."""
        return self._change(name, etag, once, lambda release: release_changes.delete_version(release, target))

    def delete(self, name: AdapterName, *, etag: str = "", once: Once | None = None) -> Adapter | None:
        """Remove an adapter with all its versions and return what it was; a repetition of `once` returns None.

        Packages stay.
        """
        with self._journal() as (connection, journal):
            if journal.answer_to(name.tenant, once):
                return None
            adapter = registry_rows.load(connection, name).adapter
            _check_etag(adapter, etag)
            registry_rows.remove(connection, name)
            journal.append(EventKind.DELETED, name, "", ())
            journal.remember(name.tenant, once, None)
            return adapter

    def close(self) -> None:
        """Close all connections. The registry may not be used afterwards."""
        self._engine.dispose()

    @contextmanager
    def _journal(self) -> Iterator[tuple[Connection, Journal]]:
        """The one writing transaction of all servers on this database."""
        with writing(self._engine) as connection:
            yield connection, Journal(connection, self._clock())

    def _change(
        self,
        name: AdapterName,
        etag: str,
        once: Once | None,
        decide: Callable[[Release], Change | None],
        check: Callable[[Connection, Adapter], None] | None = None,
    ) -> Adapter:
        """Read an adapter, decide, `check` what it would be against the others, and write it."""
        with self._journal() as (connection, journal):
            if answered := journal.answer_to(name.tenant, once):
                return _still(answered.adapter)
            before = registry_rows.load(connection, name)
            _check_etag(before.adapter, etag)
            change = decide(before)
            if change is not None and check is not None:
                check(connection, change.release.adapter)
            if (
                change is not None and change.kind is not EventKind.ROLLED_BACK
            ):  # which must always be possible
                _check_room_for_pins(connection, self.pin_limits, before.adapter, change.release.adapter)
            adapter = self._commit(connection, journal, before, change)
            journal.remember(name.tenant, once, adapter)
            return adapter

    def _commit(
        self, connection: Connection, journal: Journal, before: Release | None, change: Change | None
    ) -> Adapter:
        if change is None:
            assert before is not None
            return before.adapter
        journal.append(change.kind, change.release.adapter.name, change.digest, change.aliases)
        adapter = replace(change.release.adapter, revision=journal.revision, updated_at=journal.now)
        after = Release(adapter, change.release.history)
        if before is None:
            registry_rows.add(connection, after)
        else:
            registry_rows.change(connection, before, after)
        return adapter

    def _check_quota(
        self, connection: Connection, tenant: str, version: Version, *, is_new_name: bool
    ) -> None:
        subject = f"tenants/{tenant}"
        limit = self._quota.max_adapters
        if limit is not None and is_new_name:
            query = select(func.count()).select_from(adapters).where(adapters.c.tenant == tenant)
            if connection.execute(query).scalar_one() >= limit:
                raise QuotaExceededError(f"has {limit} adapters, as many as it may; delete some", subject)
        if self._quota.max_bytes is None:
            return
        digests = (
            select(versions.c.digest, func.max(versions.c.size_bytes).label("size_bytes"))
            .join(adapters, adapters.c.id == versions.c.adapter_id)
            .where((adapters.c.tenant == tenant) & (versions.c.digest != version.digest))
            .group_by(versions.c.digest)
            .subquery()
        )
        used = int(connection.execute(select(func.coalesce(func.sum(digests.c.size_bytes), 0))).scalar_one())
        if used + version.size_bytes > self._quota.max_bytes:
            raise QuotaExceededError(
                f"{used} bytes of packages and {version.size_bytes} more are over its limit of "
                f"{self._quota.max_bytes}; delete some versions",
                subject,
            )


def _still(adapter: Adapter | None) -> Adapter:
    assert adapter is not None, "a request that deletes has other content than one that answers an adapter"
    return adapter


def _check_etag(adapter: Adapter, etag: str) -> None:
    if etag and etag != str(adapter.revision):
        raise EtagMismatchError(f"adapter '{adapter.name}' was changed meanwhile; read it again")


def _pinned(connection: Connection) -> list[Adapter]:
    query = select(adapters).where(adapters.c.is_pinned).order_by(adapters.c.tenant, adapters.c.adapter)
    return [release.adapter for release in registry_rows.load_all(connection, query)]


def _check_room_for_pins(
    connection: Connection, limits: PinLimits | None, before: Adapter, after: Adapter
) -> None:
    """Raises TooManyPinnedError where a change lets pinned names serve more than may be."""
    if limits is None or not after.is_pinned:
        return
    had = {v.digest for v in before.served_by_name()} if before.is_pinned else set()
    if {v.digest for v in after.served_by_name()} <= had:
        return
    adapters_pinned = [one for one in _pinned(connection) if one.name != after.name] + [after]
    pinned = {v.digest: v for one in adapters_pinned for v in one.served_by_name()}
    if len(pinned) > limits.max_versions:
        raise TooManyPinnedError(
            f"pinned adapters would take {len(pinned)} adapter slots, and at most {limits.max_versions} may be; "
            "let go of some"
        )
    taken = sum(version.num_elements for version in pinned.values())
    own = max(version.num_elements for version in after.versions)  # one of them may be new
    largest = max(own, connection.scalar(select(func.max(versions.c.num_elements))) or 0)
    if taken + largest > limits.arena_elements:
        raise TooManyPinnedError(
            f"pinned adapters would take {taken} of the {limits.arena_elements} weights that the adapter arena holds, "
            f"and leave no room for the largest version, of {largest}; let go of some"
        )


def _check_pins(connection: Connection, adapter: Adapter, max_pinned: int) -> None:
    if not adapter.is_pinned:
        return
    digests = {v.digest for one in (*_pinned(connection), adapter) for v in one.served_by_name()}
    if len(digests) > max_pinned:
        raise TooManyPinnedError(
            f"pinned adapters would take {len(digests)} adapter slots, and at most {max_pinned} may be; let go of some"
        )
