"""Which URLs packages may be read from, and what of a URL may be shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from loraplex_adapters.errors import FieldViolation, InvalidRequestError

DEFAULT_SCHEMES = frozenset({"file", "s3", "gs", "gcs", "http", "https"})
MAX_URL_CHARACTERS = 2048
_MAX_LABEL = 512  # characters
_BUCKET_SCHEMES = ("s3", "gs", "gcs")
_SAME_SCHEME = {"gcs": "gs", "local": "file"}


@dataclass(frozen=True, slots=True)
class UrlPolicy:
    """What the server's settings allow. For hosts of http and https, `http_source` has rules of its own."""

    schemes: frozenset[str] = DEFAULT_SCHEMES
    prefixes: tuple[str, ...] = ()  # beginnings of allowed URLs, up to a whole part of the path; empty: any

    def parse(self, url: str) -> SplitResult:
        """The parts of an allowed URL. Raises InvalidRequestError, which names neither prefixes nor secrets."""
        parts = _parsed(url)
        if parts.scheme not in self.schemes:
            raise _invalid(f"must be of one of the schemes {', '.join(sorted(self.schemes))}")
        _check_parts(parts)
        if self.prefixes and not any(_begins(parts, urlsplit(prefix)) for prefix in self.prefixes):
            raise _invalid("must begin with one of the server's adapter_url_prefixes")
        return parts


def source_label(url: str) -> str:
    """`url` without user, password, query and fragment: what may be stored and shown."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError:
        return "url"
    return f"{parts.scheme}://{host}{port}{parts.path}"[:_MAX_LABEL]


def check_prefix(prefix: str) -> None:
    """Raises ValueError, in words for an operator, unless `prefix` can be the beginning of an allowed URL."""
    try:
        parts = _parsed(prefix)
        _check_parts(parts)
    except InvalidRequestError as error:
        raise ValueError(f"{source_label(prefix)}: {error}") from None
    if parts.scheme not in ("file", "local") and not parts.netloc:
        raise ValueError(f"{prefix}: must name a bucket or host, as in s3://models/adapters")
    if parts.query or parts.username is not None:
        raise ValueError(f"{source_label(prefix)}: must have no user and no query")


def _parsed(url: str) -> SplitResult:
    if len(url) > MAX_URL_CHARACTERS or not url.isprintable() or " " in url:
        raise _invalid(f"must have at most {MAX_URL_CHARACTERS} characters, no spaces among them")
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port, parts.username  # reading them checks them
    except ValueError:
        raise _invalid("is malformed") from None
    if "::" in url.partition("?")[0].replace(f"[{host}]", ""):  # an IPv6 host is no chain
        raise _invalid("must not chain file systems with '::'")
    return parts


def _check_parts(parts: SplitResult) -> None:
    if parts.scheme in ("http", "https"):
        if not parts.hostname:
            raise _invalid("must name a host")
    elif parts.username is not None or parts.query or parts.fragment:
        raise _invalid(f"must have no user, query or fragment in the scheme {parts.scheme}")
    elif parts.scheme in ("file", "local") and parts.hostname not in (None, "localhost"):
        raise _invalid("must name a folder of the server's machine, as in file:///adapters/faq")
    elif parts.scheme in _BUCKET_SCHEMES and not parts.netloc:
        raise _invalid(f"must name a bucket, as in {parts.scheme}://models/faq")


def _begins(parts: SplitResult, prefix: SplitResult) -> bool:
    """Whether the same place is meant, and the path leads through all of the prefix's and nowhere back."""
    path, allowed = _segments(parts), _segments(prefix)
    while allowed and not allowed[-1]:  # a slash at the end
        allowed.pop()
    return (
        _place(parts) == _place(prefix)
        and path[: len(allowed)] == allowed
        and not any(segment in (".", "..") for segment in path)
    )


def _place(parts: SplitResult) -> tuple[str, str | None, int | None]:
    is_http = parts.scheme in ("http", "https")
    # Names of hosts are the same in capitals, names of buckets are not.
    place = parts.hostname if is_http else parts.netloc.removeprefix("localhost")
    return _SAME_SCHEME.get(parts.scheme, parts.scheme), place, parts.port


def _segments(parts: SplitResult) -> list[str]:
    """Of the path as any server might read it."""
    return re.split(r"[/\\]", unquote(parts.path))


def _invalid(description: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation("url", description)])
