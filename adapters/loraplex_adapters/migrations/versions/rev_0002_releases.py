"""Releases: versions, aliases, labels, events and request ids. Every old adapter becomes one with one version.

Old names were free paths; new ones are a tenant and an adapter. "a" becomes "a" of the tenant "default", "a/b" becomes
"b" of "a", "tenants/a/adapters/b" keeps its meaning, and further parts are joined by dots. A name whose way back is not
plain is kept in the label "renamed-from", from which the downgrade restores it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TEXT

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_DEFAULT_TENANT = "default"
_RESERVED = ("base", "other")  # of the default tenant
_MAX_PART_CHARACTERS = 63
_MAX_OLD_NAME_CHARACTERS = 128
_RENAMED_FROM = "renamed-from"
_ROWS_AT_ONCE = 500

_SORTED = sa.Text().with_variant(TEXT(collation="C"), "postgresql")

_NEW_TABLES = ("request_ids", "events", "labels", "aliases", "versions", "registry_meta")


def upgrade() -> None:
    """Make the new tables and move the rows."""
    connection = op.get_bind()
    rows = [dict(row) for row in connection.execute(sa.text("SELECT * FROM adapters")).mappings()]
    for row in rows:
        row["target_modules"] = _read_json(row["target_modules"])
    op.drop_table("adapters")
    tables = _create_tables()
    op.bulk_insert(
        tables["registry_meta"], [{"id": 1, "revision": 0, "pruned_revision": 0, "pruned_at_us": 0}]
    )
    names = _new_names([row["name"] for row in rows])
    inserted: dict[str, list[dict[str, Any]]] = {"adapters": [], "versions": [], "aliases": [], "labels": []}
    for adapter_id, row in enumerate(rows, start=1):
        for table, values in _new_rows(adapter_id, row, names[row["name"]]):
            inserted[table].append(values)
    for table, values_of_all in inserted.items():
        for some in _parts(values_of_all):
            op.bulk_insert(tables[table], some)
    if rows and connection.dialect.name == "postgresql":
        # The ids above were given by hand; the next one comes from the sequence.
        op.execute(f"SELECT setval(pg_get_serial_sequence('adapters', 'id'), {len(rows)})")


def downgrade() -> None:
    """Keep of every adapter the version that "stable" names; all that old tables have no place for is lost."""
    connection = op.get_bind()
    rows = [_old_row(row) for row in connection.execute(sa.text(_STABLE_VERSIONS)).mappings()]
    for table in (*_NEW_TABLES, "adapters"):
        op.drop_table(table)
    old = op.create_table(
        "adapters",
        sa.Column("name", sa.String(_MAX_OLD_NAME_CHARACTERS), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False, index=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("target_modules", sa.JSON, nullable=False),
        sa.Column("served_module_count", sa.Integer, nullable=False),
        sa.Column("base_fingerprint", sa.String(64), nullable=False),
        sa.Column("created_at_us", sa.BigInteger, nullable=False),
    )
    for some in _parts(rows):
        op.bulk_insert(old, some)


_STABLE_VERSIONS = f"""
SELECT a.tenant, a.adapter, a.created_at_us AS adapter_created_at_us, v.*, l.value AS renamed_from
FROM adapters a
JOIN aliases s ON s.adapter_id = a.id AND s.alias = 'stable'
JOIN versions v ON v.adapter_id = a.id AND v.digest = s.digest
LEFT JOIN labels l ON l.adapter_id = a.id AND l.key = '{_RENAMED_FROM}'
"""


def _old_row(row: Any) -> dict[str, Any]:
    plain = row["adapter"] if row["tenant"] == _DEFAULT_TENANT else f"{row['tenant']}/{row['adapter']}"
    return {
        "name": row["renamed_from"] or plain,
        "digest": row["digest"],
        "state": "failed" if row["state"] == "failed" else "ready",
        "size_bytes": row["size_bytes"],
        "rank": row["rank"],
        "target_modules": _read_json(row["target_modules"]),
        "served_module_count": row["served_module_count"],
        "base_fingerprint": row["base_fingerprint"],
        "created_at_us": row["adapter_created_at_us"],
    }


def _new_rows(
    adapter_id: int, row: dict[str, Any], name: tuple[str, str, bool]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(table, row) of what one old row becomes."""
    tenant, adapter, is_renamed = name
    yield (
        "adapters",
        {
            "id": adapter_id,
            "tenant": tenant,
            "adapter": adapter,
            "revision": 0,
            "is_pinned": False,
            "traffic": [],
            "shadow_target": "",
            "shadow_percent": 0,
            "created_at_us": row["created_at_us"],
            "updated_at_us": row["created_at_us"],
        },
    )
    yield (
        "versions",
        {
            "adapter_id": adapter_id,
            "digest": row["digest"],
            "number": 1,
            "state": row["state"],
            "size_bytes": row["size_bytes"],
            # Not known; no element has less than two bytes, so this is the most that it can be.
            "num_elements": row["size_bytes"] // 2,
            "rank": row["rank"],
            "target_modules": row["target_modules"],
            "served_module_count": row["served_module_count"],
            "base_fingerprint": row["base_fingerprint"],
            "template_hash": "",
            "source": "upload",
            "signer": "",
            "created_at_us": row["created_at_us"],
        },
    )
    yield (
        "aliases",
        {"adapter_id": adapter_id, "alias": "stable", "digest": row["digest"], "history": []},
    )
    if is_renamed:
        yield "labels", {"adapter_id": adapter_id, "key": _RENAMED_FROM, "value": row["name"]}


def _new_names(old_names: list[str]) -> dict[str, tuple[str, str, bool]]:
    """Old name -> (tenant, adapter, whether the way back needs to be written down)."""
    names: dict[str, tuple[str, str, bool]] = {}
    taken: set[tuple[str, str]] = set()
    # Those that keep their meaning come first, so that no other takes their place.
    for old in sorted(old_names, key=lambda name: (not _is_plain(name), name)):
        tenant, adapter = _tenant_and_adapter(old)
        if (tenant, adapter) in taken or not _is_valid(tenant, adapter):
            digest = hashlib.sha256(old.encode()).hexdigest()[:12]
            kept = _MAX_PART_CHARACTERS - len(digest) - 1
            tenant = tenant if len(tenant) <= _MAX_PART_CHARACTERS else f"{tenant[:kept]}-{digest}"
            adapter = f"{adapter[:kept]}-{digest}"
        taken.add((tenant, adapter))
        names[old] = (tenant, adapter, not _is_plain(old))
    return names


def _is_plain(old: str) -> bool:
    """Whether the new name's short form is the old name."""
    tenant, slash, adapter = old.rpartition("/")
    return (
        "/" not in tenant
        and (not slash or tenant != _DEFAULT_TENANT)
        and _is_valid(tenant or _DEFAULT_TENANT, adapter)
    )


def _tenant_and_adapter(old: str) -> tuple[str, str]:
    match old.split("/"):
        case [adapter]:
            return _DEFAULT_TENANT, adapter
        case ["tenants", tenant, "adapters", adapter]:
            return tenant, adapter
        case [tenant, *parts]:
            return tenant, ".".join(parts)
    raise AssertionError("a string has at least one part")


def _is_valid(tenant: str, adapter: str) -> bool:
    return (
        max(len(tenant), len(adapter)) <= _MAX_PART_CHARACTERS
        and adapter not in (".", "..")
        and not (tenant == _DEFAULT_TENANT and adapter in _RESERVED)
    )


def _read_json(value: Any) -> Any:
    """Where a query names no types, a driver may give JSON read, or as text."""
    return json.loads(value) if isinstance(value, str) else value


def _parts(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    return (rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE))


def _create_tables() -> dict[str, sa.Table]:
    tables = [
        op.create_table(
            "registry_meta",
            sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("revision", sa.BigInteger, nullable=False),
            sa.Column("pruned_revision", sa.BigInteger, nullable=False),
            sa.Column("pruned_at_us", sa.BigInteger, nullable=False),
        ),
        op.create_table(
            "adapters",
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("tenant", _SORTED, nullable=False),
            sa.Column("adapter", _SORTED, nullable=False),
            sa.Column("revision", sa.BigInteger, nullable=False),
            sa.Column("is_pinned", sa.Boolean, nullable=False),
            sa.Column("traffic", sa.JSON, nullable=False),
            sa.Column("shadow_target", sa.Text, nullable=False),
            sa.Column("shadow_percent", sa.Integer, nullable=False),
            sa.Column("created_at_us", sa.BigInteger, nullable=False),
            sa.Column("updated_at_us", sa.BigInteger, nullable=False),
            sa.UniqueConstraint("tenant", "adapter", name="uq_adapters_name"),
        ),
        op.create_table(
            "versions",
            sa.Column("adapter_id", sa.Integer, sa.ForeignKey("adapters.id"), primary_key=True),
            sa.Column("digest", _SORTED, primary_key=True),
            sa.Column("number", sa.Integer, nullable=False),
            sa.Column("state", sa.String(16), nullable=False),
            sa.Column("size_bytes", sa.BigInteger, nullable=False),
            sa.Column("num_elements", sa.BigInteger, nullable=False),
            sa.Column("rank", sa.Integer, nullable=False),
            sa.Column("target_modules", sa.JSON, nullable=False),
            sa.Column("served_module_count", sa.Integer, nullable=False),
            sa.Column("base_fingerprint", sa.Text, nullable=False),
            sa.Column("template_hash", sa.Text, nullable=False),
            sa.Column("source", sa.Text, nullable=False),
            sa.Column("signer", sa.Text, nullable=False),
            sa.Column("created_at_us", sa.BigInteger, nullable=False),
        ),
        op.create_table(
            "aliases",
            sa.Column("adapter_id", sa.Integer, sa.ForeignKey("adapters.id"), primary_key=True),
            sa.Column("alias", sa.Text, primary_key=True),
            sa.Column("digest", sa.Text, nullable=False),
            sa.Column("history", sa.JSON, nullable=False),
        ),
        op.create_table(
            "labels",
            sa.Column("adapter_id", sa.Integer, sa.ForeignKey("adapters.id"), primary_key=True),
            sa.Column("key", sa.Text, primary_key=True),
            sa.Column("value", sa.Text, nullable=False),
        ),
        op.create_table(
            "events",
            sa.Column("revision", sa.BigInteger, primary_key=True, autoincrement=False),
            sa.Column("kind", sa.String(16), nullable=False),
            sa.Column("tenant", sa.Text, nullable=False),
            sa.Column("adapter", sa.Text, nullable=False),
            sa.Column("digest", sa.Text, nullable=False),
            sa.Column("alias", sa.Text, nullable=False),
            sa.Column("at_us", sa.BigInteger, nullable=False),
        ),
        op.create_table(
            "request_ids",
            sa.Column("request_id", sa.Text, primary_key=True),
            sa.Column("content", sa.Text, nullable=False),
            sa.Column("answer", sa.Text),
            sa.Column("at_us", sa.BigInteger, nullable=False),
        ),
    ]
    op.create_index(
        "ix_adapters_pinned",
        "adapters",
        ["tenant", "adapter"],
        sqlite_where=sa.text("is_pinned"),
        postgresql_where=sa.text("is_pinned"),
    )
    op.create_index("ix_versions_digest", "versions", ["digest"])
    op.create_index("ix_request_ids_at_us", "request_ids", ["at_us"])
    return {table.name: table for table in tables}
