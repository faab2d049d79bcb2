"""Shuts a process and its children off from every network but the machine's own loopback.

`install(folder)` writes a `sitecustomize` that Python runs first; put `folder` on PYTHONPATH. Every attempt to reach
another machine, name look-ups included, fails and is noted in `folder/attempts`.
"""

from __future__ import annotations

from pathlib import Path

_CODE = """
import os
import socket

_ATTEMPTS = {attempts!r}
_LOCAL = ("127.", "::1", "localhost")


def _check(what, address):
    host = address[0] if isinstance(address, tuple) else ""
    if isinstance(address, tuple) and not (host == "" or str(host).startswith(_LOCAL)):
        with open(_ATTEMPTS, "a") as file:
            file.write(f"{{os.getpid()}} {{what}} {{address!r}}\\n")
        raise OSError(101, "Network is unreachable (shut off by the test)")


class _Socket(socket.socket):
    def connect(self, address):
        _check("connect", address)
        return super().connect(address)

    def connect_ex(self, address):
        _check("connect_ex", address)
        return super().connect_ex(address)

    def sendto(self, data, *rest):
        _check("sendto", rest[-1])
        return super().sendto(data, *rest)


_getaddrinfo = socket.getaddrinfo


def _look_up(host, *rest, **options):
    name = host.decode() if isinstance(host, bytes) else host
    if name not in (None, ""):
        _check("getaddrinfo", (name, 0))
    return _getaddrinfo(host, *rest, **options)


socket.socket = _Socket
socket.getaddrinfo = _look_up
"""


def install(folder: Path) -> Path:
    """A folder for PYTHONPATH."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_CODE.format(attempts=str(folder / "attempts")))
    return folder


def attempts(folder: Path) -> str:
    """What was tried; empty if nothing."""
    file = folder / "attempts"
    return file.read_text() if file.exists() else ""
