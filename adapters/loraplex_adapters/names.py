"""What an adapter may be called."""

from __future__ import annotations

import re

from loraplex_adapters.errors import FieldViolation, InvalidRequestError

MAX_NAME_CHARACTERS = 128
RESERVED_NAMES = frozenset({"base", "other"})
"""What metrics call the base model and the adapters beyond their bound."""

_PART = re.compile(r"[a-z0-9._-]+")


def validate_adapter_name(name: str, field: str = "name") -> str:
    """Return `name` if it may be used; otherwise raise InvalidRequestError for `field`.

    1 to 128 characters: parts of lower-case letters, digits, '-', '_' and '.', with '/' between them; no
    part is '.' or '..', and the whole is not one of RESERVED_NAMES.
    """
    problem = _problem(name)
    if problem:
        raise InvalidRequestError([FieldViolation(field, problem)])
    return name


def _problem(name: str) -> str | None:
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS:
        return f"must have 1 to {MAX_NAME_CHARACTERS} characters, not {len(name)}"
    if name in RESERVED_NAMES:
        return f"must not be one of {', '.join(sorted(RESERVED_NAMES))}, which name no adapter in metrics"
    parts = name.split("/")
    if not all(parts):
        return "must not begin or end with '/' or hold '//'"
    if any(part in (".", "..") for part in parts):
        return "must not have '.' or '..' as a part"
    if not all(_PART.fullmatch(part) for part in parts):
        return "may hold lower-case letters, digits, '-', '_' and '.', with '/' between parts"
    return None
