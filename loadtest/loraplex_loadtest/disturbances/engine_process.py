"""Finds the engine of a server on this machine."""

from __future__ import annotations

import socket

import psutil

from loraplex_loadtest.errors import TargetFeatureError

_SPAWNED = "multiprocessing.spawn"


def kill_engine(address: str) -> int:
    """SIGKILL, as the kernel does when memory is short; returns the process's id."""
    try:
        engine = engine_process(server_process(address))
        engine.kill()
    except psutil.Error as error:
        raise TargetFeatureError(f"the server's processes may not be seen or killed: {error}") from None
    return engine.pid


def server_process(address: str) -> psutil.Process:
    """Who listens at `host:port`. Raises TargetFeatureError if nobody of this machine does."""
    host, _, number = address.rpartition(":")
    port = int(number)
    if not is_of_this_machine(host.strip("[]")):
        raise TargetFeatureError(f"{host} is another machine: its engine is killed there or not at all")
    for connection in psutil.net_connections(kind="tcp"):
        here = connection.laddr
        if connection.status == psutil.CONN_LISTEN and here and here.port == port and connection.pid:
            return psutil.Process(connection.pid)
    raise TargetFeatureError(f"no process of this machine that may be seen listens at port {port}")


def is_of_this_machine(host: str) -> bool:
    """Whether a name or address is one of this machine's own."""
    own = {one.address.partition("%")[0] for some in psutil.net_if_addrs().values() for one in some}
    own |= {"0.0.0.0", "::", "::1"}
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host or "localhost", None)}
    except OSError:
        return False
    return bool(found) and all(one in own or one.startswith("127.") for one in found)


def engine_process(server: psutil.Process) -> psutil.Process:
    """The spawned child that holds the base: the largest one."""
    found: list[tuple[int, psutil.Process]] = []
    for child in server.children():
        try:
            if _SPAWNED in " ".join(child.cmdline()):
                found.append((child.memory_info().rss, child))
        except psutil.Error:
            continue
    if not found:
        raise TargetFeatureError("the server has no engine process to kill")
    return max(found, key=lambda one: one[0])[1]
