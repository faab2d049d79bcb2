"""Adapters in the registry's tables: read whole, written as the difference of before and after."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, Select, Table, delete, func, insert, select, update

from loraplex_adapters.errors import AdapterNotFoundError
from loraplex_adapters.names import AdapterName
from loraplex_adapters.registry_database import from_us, to_us
from loraplex_adapters.registry_schema import adapters, aliases, labels, versions
from loraplex_adapters.release_changes import Release
from loraplex_adapters.releases import Adapter, Shadow, TrafficShare, Version, VersionState

_Row = Mapping[Any, Any]


def load(connection: Connection, name: AdapterName) -> Release:
    """One adapter. Raises AdapterNotFoundError."""
    found = find(connection, name)
    if found is None:
        raise AdapterNotFoundError(f"no adapter is registered as '{name}'")
    return found


def find(connection: Connection, name: AdapterName) -> Release | None:
    """One adapter; None if there is none of that name."""
    found = load_all(connection, select(adapters).where(_is(name)))
    return found[0] if found else None


def load_all(connection: Connection, query: Select[Any]) -> list[Release]:
    """The adapters of a query of their table, in its order: four statements, however many they are."""
    rows = connection.execute(query).mappings().all()
    ids = [row["id"] for row in rows]
    parts = {
        table: _by_adapter(connection, table, ids) if ids else {} for table in (versions, aliases, labels)
    }
    return [
        _release(row, parts[versions][row["id"]], parts[aliases][row["id"]], parts[labels][row["id"]])
        for row in rows
    ]


def add(connection: Connection, release: Release) -> None:
    """Enter an adapter whose name is free."""
    adapter = release.adapter
    row = {"tenant": adapter.name.tenant, "adapter": adapter.name.adapter, **_own_columns(adapter)}
    row["created_at_us"] = to_us(adapter.created_at)
    (adapter_id,) = connection.execute(insert(adapters).values(row)).inserted_primary_key or (None,)
    assert isinstance(adapter_id, int)
    _write_parts(connection, adapter_id, None, release)


def change(connection: Connection, before: Release, after: Release) -> None:
    """Turn the rows of `before`, as loaded in this transaction, into those of `after`."""
    adapter_id = _id_of(connection, before.adapter.name)
    connection.execute(
        update(adapters).where(adapters.c.id == adapter_id).values(_own_columns(after.adapter))
    )
    _write_parts(connection, adapter_id, before, after)


def remove(connection: Connection, name: AdapterName) -> None:
    """Delete all rows of an adapter that was loaded in this transaction."""
    adapter_id = _id_of(connection, name)
    for table in (versions, aliases, labels):
        connection.execute(delete(table).where(table.c.adapter_id == adapter_id))
    connection.execute(delete(adapters).where(adapters.c.id == adapter_id))


def _is(name: AdapterName) -> Any:
    return (adapters.c.tenant == name.tenant) & (adapters.c.adapter == name.adapter)


def _id_of(connection: Connection, name: AdapterName) -> int:
    return int(connection.execute(select(adapters.c.id).where(_is(name))).scalar_one())


def _by_adapter(connection: Connection, table: Table, ids: list[int]) -> dict[int, list[_Row]]:
    query = select(table).where(table.c.adapter_id.in_(ids))
    if table is versions:
        query = query.order_by(versions.c.number.desc())
    found: dict[int, list[_Row]] = defaultdict(list)
    for row in connection.execute(query).mappings():
        found[row["adapter_id"]].append(row)
    return found


def _release(
    row: _Row, version_rows: Iterable[_Row], alias_rows: Iterable[_Row], label_rows: Iterable[_Row]
) -> Release:
    alias_rows = sorted(alias_rows, key=lambda one: str(one["alias"]))
    adapter = Adapter(
        name=AdapterName(row["tenant"], row["adapter"]),
        versions=tuple(_version(one) for one in version_rows),
        aliases={one["alias"]: one["digest"] for one in alias_rows},
        traffic=tuple(TrafficShare(target, weight) for target, weight in row["traffic"]),
        shadow=Shadow(row["shadow_target"], row["shadow_percent"]) if row["shadow_target"] else None,
        is_pinned=row["is_pinned"],
        labels={one["key"]: one["value"] for one in sorted(label_rows, key=lambda one: str(one["key"]))},
        revision=row["revision"],
        created_at=from_us(row["created_at_us"]),
        updated_at=from_us(row["updated_at_us"]),
    )
    return Release(adapter, {one["alias"]: tuple(one["history"]) for one in alias_rows if one["history"]})


def _version(row: _Row) -> Version:
    return Version(
        digest=row["digest"],
        size_bytes=row["size_bytes"],
        num_elements=row["num_elements"],
        rank=row["rank"],
        target_modules=tuple(row["target_modules"]),
        served_module_count=row["served_module_count"],
        base_fingerprint=row["base_fingerprint"],
        template_hash=row["template_hash"],
        source=row["source"],
        signer=row["signer"],
        state=VersionState(row["state"]),
        created_at=from_us(row["created_at_us"]),
    )


def _own_columns(adapter: Adapter) -> dict[str, Any]:
    """What can change in an adapter's own row."""
    return {
        "revision": adapter.revision,
        "is_pinned": adapter.is_pinned,
        "traffic": [[share.target, share.weight] for share in adapter.traffic],
        "shadow_target": adapter.shadow.target if adapter.shadow else "",
        "shadow_percent": adapter.shadow.percent if adapter.shadow else 0,
        "updated_at_us": to_us(adapter.updated_at),
    }


def _write_parts(connection: Connection, adapter_id: int, before: Release | None, after: Release) -> None:
    _write(connection, versions, adapter_id, _version_rows(before), _version_rows(after))
    _write(connection, aliases, adapter_id, _alias_rows(before), _alias_rows(after))
    _write(connection, labels, adapter_id, _label_rows(before), _label_rows(after))


def _write(
    connection: Connection,
    table: Table,
    adapter_id: int,
    before: dict[str, dict[str, Any]],
    after: dict[str, dict[str, Any]],
) -> None:
    """Delete, update and insert the rows of one adapter that differ; keys are the table's second key column."""
    key_column = list(table.primary_key.columns)[1]
    of_adapter = table.c.adapter_id == adapter_id
    gone = before.keys() - after.keys()
    if gone:
        connection.execute(delete(table).where(of_adapter & key_column.in_(gone)))
    for key in after.keys() & before.keys():
        if after[key] != before[key]:
            connection.execute(update(table).where(of_adapter & (key_column == key)).values(after[key]))
    new = [
        {"adapter_id": adapter_id, key_column.name: key, **after[key]} for key in after if key not in before
    ]
    if not new:
        return
    if table is versions:
        (row,) = new  # versions come one at a time
        newest = select(func.coalesce(func.max(versions.c.number), 0)).where(of_adapter)
        row["number"] = connection.execute(newest).scalar_one() + 1
    connection.execute(insert(table), new)


def _version_rows(release: Release | None) -> dict[str, dict[str, Any]]:
    if release is None:
        return {}
    return {
        version.digest: {
            "state": version.state.value,
            "size_bytes": version.size_bytes,
            "num_elements": version.num_elements,
            "rank": version.rank,
            "target_modules": list(version.target_modules),
            "served_module_count": version.served_module_count,
            "base_fingerprint": version.base_fingerprint,
            "template_hash": version.template_hash,
            "source": version.source,
            "signer": version.signer,
            "created_at_us": to_us(version.created_at),
        }
        for version in release.adapter.versions
    }


def _alias_rows(release: Release | None) -> dict[str, dict[str, Any]]:
    if release is None:
        return {}
    return {
        alias: {"digest": digest, "history": list(release.history.get(alias, ()))}
        for alias, digest in release.adapter.aliases.items()
    }


def _label_rows(release: Release | None) -> dict[str, dict[str, Any]]:
    return {key: {"value": value} for key, value in release.adapter.labels.items()} if release else {}
