"""Host and port of a listener: which of them is at fault."""

from __future__ import annotations

import socket

import pytest

from loraplex_server.config import ConfigError
from loraplex_server.errors import PortInUseError
from loraplex_server.listening import check_can_listen


def check(host: str, port: int = 0) -> None:
    check_can_listen(host, port, "metrics_port", "0 takes any free one")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_host_of_this_machine_and_a_free_port_are_fine_and_stay_free(host: str) -> None:
    check(host)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    check(host, port)
    check(host, port)


def test_a_taken_port_is_told_with_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            PortInUseError, match=rf"127\.0\.0\.1:{port}: it is in use; choose another metrics_port"
        ):
            check("127.0.0.1", port)


def test_an_address_of_another_machine_is_the_hosts_fault() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1: no network interface .* choose another host"):
        check("192.0.2.1")


@pytest.mark.parametrize("host", ["nosuch.invalid", "a" * 70 + ".invalid"])
def test_a_name_that_nobody_knows_is_the_hosts_fault(host: str) -> None:
    with pytest.raises(ConfigError, match=r"no host of that name is known; choose another host"):
        check(host)
