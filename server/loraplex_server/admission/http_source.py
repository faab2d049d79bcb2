"""A package folder behind HTTP, without letting a caller use the server to reach what only the server can reach.

Guarded: the addresses that a host name stands for are looked at after they are resolved, and the connection goes to
one that was looked at, so a name that resolves differently the next moment changes nothing. Private, loopback,
link-local (where clouds keep their metadata), multicast, reserved and translated IPv6 addresses are refused, unless
the settings allow private hosts. Redirects are followed on the same host and port alone, or from http to https.
Certificates are verified. Proxies of the environment are not used, since the address behind one cannot be seen.

Not guarded: public hosts of whatever content; ports other than 80 and 443; how many requests a caller lets the server
make. Who needs that gives the server an outbound firewall, or leaves http and https out of the allowed schemes.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import socket
import ssl
from contextlib import AbstractContextManager, closing
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_UNRESERVED = "/%:@!$&'()*+,;=~-._"
# IPv6 addresses that stand for IPv4 ones, behind a translator or a tunnel.
_TRANSLATED = tuple(
    ipaddress.ip_network(n) for n in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
)


class PrivateHostError(OSError):
    """Every address of the host is one that callers may not reach through the server."""


class HttpFolder:
    """Files at `<url>/<name>?<query of the url>`, read one after another. Used by one thread."""

    def __init__(self, parts: SplitResult, timeout_s: float, allow_private_hosts: bool) -> None:
        """`parts` names a host. `timeout_s` bounds each wait for the network."""
        self._parts = parts
        self._timeout_s = timeout_s
        self._allow_private_hosts = allow_private_hosts

    def open(self, name: str) -> AbstractContextManager[Any]:
        """The file's body, as the server sends it. Raises OSError and http.client.HTTPException."""
        path = quote(f"{self._parts.path.rstrip('/')}/{name}", safe=_UNRESERVED)
        parts = self._parts._replace(path=path, fragment="")
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._get(parts)
            if response.status not in _REDIRECTS:
                return closing(_checked(response))
            location = response.headers.get("Location", "")
            response.close()
            target = urlsplit(urljoin(parts.geturl(), location))
            if not _may_redirect(parts, target):
                raise OSError("redirected to another host")
            parts = target._replace(fragment="")
        raise OSError("too many redirects")

    def _get(self, parts: SplitResult) -> http.client.HTTPResponse:
        assert parts.hostname is not None, "checked when the URL was parsed"
        kind = _SecureConnection if parts.scheme == "https" else _Connection
        connection = kind(parts.hostname, parts.port, self._timeout_s, self._allow_private_hosts)
        headers = {"Accept-Encoding": "identity", "Connection": "close", **_authorization(self._parts)}
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            connection.request("GET", target, headers=headers)
            return connection.getresponse()  # holds the socket from here on
        except BaseException:
            connection.close()
            raise


class _Connection(http.client.HTTPConnection):
    """Connects to addresses that were looked at, and to no others."""

    def __init__(self, host: str, port: int | None, timeout_s: float, allow_private_hosts: bool) -> None:
        super().__init__(host, port, timeout=timeout_s)
        self._allow_private_hosts = allow_private_hosts

    def connect(self) -> None:
        self.sock = connect(self.host, self.port, self.timeout, self._allow_private_hosts)


class _SecureConnection(_Connection):
    default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        super().connect()
        self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)


def connect(host: str, port: int, timeout_s: float | None, allow_private_hosts: bool) -> socket.socket:
    """A connection to the first address of `host` that takes one. Raises PrivateHostError, OSError."""
    failure: OSError = PrivateHostError("no address of the host is public")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if not (allow_private_hosts or is_public(str(address[0]))):
            continue
        connection = socket.socket(family, kind, protocol)
        connection.settimeout(timeout_s)
        try:
            connection.connect(address)
        except OSError as error:
            connection.close()
            failure = error
        else:
            return connection
    raise failure


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet, seen through the notations of IPv4 in IPv6."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif any(ip in network for network in _TRANSLATED):
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _may_redirect(parts: SplitResult, target: SplitResult) -> bool:
    """To the same host and port, or from plain HTTP on its usual port to TLS on its own."""
    host, port = parts.hostname, _port(parts)
    allowed = [(parts.scheme, host, port)]
    if parts.scheme == "http" and port == http.client.HTTP_PORT:
        allowed.append(("https", host, http.client.HTTPS_PORT))
    return (target.scheme, target.hostname, _port(target)) in allowed


def _port(parts: SplitResult) -> int:
    usual = http.client.HTTPS_PORT if parts.scheme == "https" else http.client.HTTP_PORT
    return parts.port if parts.port is not None else usual


def _checked(response: http.client.HTTPResponse) -> http.client.HTTPResponse:
    if response.status == http.HTTPStatus.OK:
        return response
    response.close()
    if response.status in (http.HTTPStatus.NOT_FOUND, http.HTTPStatus.GONE):
        raise FileNotFoundError("not found")
    if response.status in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
        raise PermissionError("not allowed")
    raise OSError(f"HTTP status {response.status}")


def _authorization(parts: SplitResult) -> dict[str, str]:
    if parts.username is None:
        return {}
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    return {"Authorization": "Basic " + base64.b64encode(user).decode("ascii")}
