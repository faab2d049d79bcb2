"""JSON from strangers: bounded, without duplicate keys, without NaN; any fault is an AdapterInvalidError."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from loraplex_adapters.errors import AdapterInvalidError


def parse_object(raw: bytes, what: str) -> dict[str, Any]:
    """Parse `raw` as one JSON object. `what` names it in messages, e.g. "adapter_config.json"."""
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        detail = str(error) if type(error) is ValueError else "malformed"
        raise AdapterInvalidError(f"{what} is not valid JSON: {detail[:200]}") from error
    if not isinstance(value, dict):
        raise AdapterInvalidError(f"{what} must hold a JSON object")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            # Readers differ in which of two they take, so what was checked may not be what is served.
            raise ValueError(f"key {key[:80]!r} occurs twice")
        result[key] = value
    return result


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")
