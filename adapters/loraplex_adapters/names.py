"""What adapters, their aliases and their versions may be called, and how a request names them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from loraplex_adapters.errors import invalid

DEFAULT_TENANT = "default"
STABLE = "stable"
"""The alias that every adapter has; it answers the bare name where traffic is not split."""
MAX_PART_CHARACTERS = 63
MIN_DIGEST_CHARACTERS = 12
"""So many hex digits of a digest name a version."""
RESERVED_NAMES = frozenset({"base", "other"})
"""What metrics call the base model and the adapters beyond their bound."""

_PART = re.compile(rf"[a-z0-9._-]{{1,{MAX_PART_CHARACTERS}}}")
_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_DIGEST_CHARACTERS = 64
_DIGEST = re.compile(rf"[0-9a-f]{{{MIN_DIGEST_CHARACTERS},{_DIGEST_CHARACTERS}}}")
_TARGET = f"an alias or {MIN_DIGEST_CHARACTERS} to {_DIGEST_CHARACTERS} hex digits of a digest"


@dataclass(frozen=True, slots=True, order=True)
class AdapterName:
    """Identity of an adapter. `str()` gives the shortest form that requests may use."""

    tenant: str
    adapter: str

    @classmethod
    def parse(cls, text: str, field: str = "name") -> AdapterName:
        """Read "tenants/T/adapters/A", "T/A", or "A" of the default tenant.

        Raises InvalidRequestError for `field`.
        """
        parts = text.split("/")
        match parts:
            case ["tenants", tenant, "adapters", adapter]:
                pass
            case [tenant, adapter]:
                pass
            case [adapter]:
                tenant = DEFAULT_TENANT
            case _:
                raise invalid(field, "must be ADAPTER, TENANT/ADAPTER or tenants/TENANT/adapters/ADAPTER")
        for part in (tenant, adapter):
            problem = _problem_of_part(part)
            if problem:
                raise invalid(field, problem)
        if tenant == DEFAULT_TENANT and adapter in RESERVED_NAMES:
            raise invalid(
                field,
                f"must not be one of {', '.join(sorted(RESERVED_NAMES))}, which name no adapter in metrics",
            )
        return cls(tenant, adapter)

    @property
    def resource(self) -> str:
        """The full form, "tenants/T/adapters/A"."""
        return f"tenants/{self.tenant}/adapters/{self.adapter}"

    def __str__(self) -> str:
        return self.adapter if self.tenant == DEFAULT_TENANT else f"{self.tenant}/{self.adapter}"


@dataclass(frozen=True, slots=True)
class AdapterReference:
    """What a request names: an adapter, or one of its aliases or versions."""

    name: AdapterName
    target: str = ""  # alias, or 12..64 hex digits of a digest; empty: what the bare name serves

    @classmethod
    def parse(cls, text: str, field: str = "adapter") -> AdapterReference:
        """Read NAME, NAME@ALIAS, NAME@DIGEST or NAME@sha256:DIGEST. Raises InvalidRequestError for `field`."""
        name, at, text = text.partition("@")
        parsed = AdapterName.parse(name, field)
        target = _target(text)
        if at and target is None:
            raise invalid(field, f"must name {_TARGET} behind '@'")
        return cls(parsed, target or "")


def parse_target(text: str, field: str) -> str:
    """An alias, or a digest as `digest_of` gives it. Raises InvalidRequestError for `field`."""
    target = _target(text)
    if target is None:
        raise invalid(field, f"must name {_TARGET}")
    return target


def parse_digest(text: str, field: str) -> str:
    """A digest as `digest_of` gives it. Raises InvalidRequestError for `field`."""
    digest = digest_of(text)
    if digest is None:
        raise invalid(field, f"must be a digest, of which {MIN_DIGEST_CHARACTERS} hex digits are enough")
    return digest


def parse_whole_digest(text: str, field: str) -> str:
    """All 64 digits of a digest, in small letters. Raises InvalidRequestError for `field`."""
    digest = digest_of(text)
    if digest is None or len(digest) != _DIGEST_CHARACTERS:
        raise invalid(field, f"must be a digest of {_DIGEST_CHARACTERS} hex digits")
    return digest


def parse_alias(text: str, field: str = "alias") -> str:
    """Return `text` if an alias may be called so: 1..32 lower-case letters, digits, '-' and '_', a letter first.

    Raises InvalidRequestError for `field`.
    """
    if not _ALIAS.fullmatch(text):
        raise invalid(field, "must have 1 to 32 lower-case letters, digits, '-' and '_', a letter first")
    if digest_of(text) is not None:
        raise invalid(field, "must not look like a digest")
    return text


def parse_tenant(parent: str, field: str = "parent") -> str:
    """The tenant of "tenants/T". Raises InvalidRequestError for `field`."""
    prefix, slash, tenant = parent.partition("/")
    if prefix != "tenants" or not slash:
        raise invalid(field, "must be tenants/TENANT")
    problem = _problem_of_part(tenant)
    if problem:
        raise invalid(field, problem)
    return tenant


def digest_of(text: str) -> str | None:
    """What requests say of a digest, in small letters and without "sha256:"; None where it does not name a version.

    >>> digest_of("sha256:1F0C" + 8 * "0")
    '1f0c00000000'
    """
    digest = text.removeprefix("sha256:").lower()
    return digest if _DIGEST.fullmatch(digest) else None


def _target(text: str) -> str | None:
    return text if _ALIAS.fullmatch(text) and digest_of(text) is None else digest_of(text)


def _problem_of_part(part: str) -> str | None:
    if not 1 <= len(part) <= MAX_PART_CHARACTERS:
        return f"each part must have 1 to {MAX_PART_CHARACTERS} characters, not {len(part)}"
    if part in (".", ".."):
        return "must not have '.' or '..' as a part"
    if not _PART.fullmatch(part):
        return "may hold lower-case letters, digits, '-', '_' and '.', with '/' between tenant and adapter"
    return None
