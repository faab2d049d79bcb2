"""What Alembic runs around each migration: on the connection, and in the transaction, that `migrate` gives it."""

from __future__ import annotations

from alembic import context

from loraplex_adapters.registry_schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,  # of SQLite too, which Alembic does not trust by default
)
with context.begin_transaction():
    context.run_migrations()
