"""Whether a listener could listen, asked before it tries: gRPC has one error for all causes, and logs it raw."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from loraplex_server.config import ConfigError
from loraplex_server.errors import PortInUseError

_NOT_HERE = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


@contextmanager
def listening(host: str, port: int, setting: str, ways_out: str) -> Iterator[None]:
    """The body begins to listen, once `check_can_listen` is content; raises what that raises, also for the body."""
    check_can_listen(host, port, setting, ways_out)
    try:
        yield
    except OSError as error:
        raise _in_use(host, port, error.strerror or str(error), setting, ways_out) from None
    except RuntimeError:  # gRPC's
        raise _in_use(host, port, "it was taken in this moment", setting, ways_out) from None


def check_can_listen(host: str, port: int, setting: str, ways_out: str) -> None:
    """Bind an address of `host` and let go again; one that can be bound will do.

    setting   name of the port's, for the message
    ways_out  what else it may be

    Raises ConfigError where the host is none of this machine, PortInUseError where only the port is at fault.
    """
    failures = []
    for family, address in _addresses(host, port):
        try:
            _try_to_bind(family, address)
        except OSError as error:
            failures.append(error)
        else:
            return  # the others may be none of this machine's, as localhost's ::1
    cause = next((error for error in failures if error.errno not in _NOT_HERE), None)
    if cause is None:
        raise _wrong_host(host, "no network interface of this machine has that address")
    why = "it is in use" if cause.errno == errno.EADDRINUSE else cause.strerror or str(cause)
    raise _in_use(host, port, why, setting, ways_out)


def _addresses(host: str, port: int) -> list[tuple[int, tuple[object, ...]]]:
    """Family and address of each. Raises ConfigError."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise _wrong_host(host, "no host of that name is known") from None
    return [(family, address) for family, _, _, _, address in found]


def _in_use(host: str, port: int, why: str, setting: str, ways_out: str) -> PortInUseError:
    return PortInUseError(f"cannot listen on {host}:{port}: {why}; choose another {setting} ({ways_out})")


def _wrong_host(host: str, why: str) -> ConfigError:
    return ConfigError(
        f"cannot listen on {host}: {why}; choose another host "
        "(127.0.0.1 for this machine alone, 0.0.0.0 for every interface)"
    )


def _try_to_bind(family: int, address: tuple[object, ...]) -> None:
    """Raises OSError."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the listeners do: connections of an earlier server that are still closing are in nobody's way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
