"""`python -m loraplex_adapters.migrations URL REVISION`: bring a registry's tables to a revision, with their rows."""

from __future__ import annotations

import argparse

from loraplex_adapters.migrations import HEAD, migrate
from loraplex_adapters.registry_database import open_engine


def main() -> None:
    """Read the arguments and migrate."""
    parser = argparse.ArgumentParser(
        prog="python -m loraplex_adapters.migrations",
        description="Bring the tables of a registry to a revision. Stop all servers that use it first.",
    )
    parser.add_argument("url", help="the registry's database, as in the server's configuration")
    parser.add_argument("revision", help=f"0001, 0002, 0003, … or {HEAD}")
    arguments = parser.parse_args()
    engine = open_engine(arguments.url)
    migrate(engine, arguments.revision)
    engine.dispose()


if __name__ == "__main__":
    main()
