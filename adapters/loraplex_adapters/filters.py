"""Which adapters a list shall show: a line of terms like `state = FAILED AND labels.team = "red hats"`, as SQL."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Table, and_, exists, or_

from loraplex_adapters.errors import FieldViolation, InvalidRequestError
from loraplex_adapters.names import DEFAULT_TENANT, digest_of
from loraplex_adapters.registry_schema import adapters, aliases, labels, versions
from loraplex_adapters.releases import VersionState

MAX_FILTER_CHARACTERS = 4096
MAX_TERMS = 16
_KEYS = ("alias", "digest", "name", "pinned", "state")
_LABEL = "labels."

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_TERM = re.compile(rf'\s*(?P<key>labels\.{_QUOTED}|[^\s="]+)\s*=\s*(?P<value>{_QUOTED}|[^\s"]+)\s*')
_AND = re.compile(r"AND(?=\s)")
_ABOVE_NAMES = "\x7f"  # sorts behind every character that a name or digest may have


@dataclass(frozen=True, slots=True)
class Term:
    """One `key = value`, in which both are known to make sense."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class AdapterFilter:
    """Terms that must all hold."""

    terms: tuple[Term, ...]

    @classmethod
    def parse(cls, text: str) -> AdapterFilter | None:
        """Read the filter of a ListAdaptersRequest; None if it is empty. Raises InvalidRequestError for "filter".

        >>> AdapterFilter.parse("alias = canary AND pinned = true").terms[1]
        Term(key='pinned', value='true')
        """
        if not text.strip():
            return None
        if len(text) > MAX_FILTER_CHARACTERS or "\0" in text:
            raise _invalid(f"must have at most {MAX_FILTER_CHARACTERS} characters, none of them 0")
        terms = []
        position = 0
        while True:
            match = _TERM.match(text, position)
            if match is None:
                raise _invalid(f"must go on with `key = value` at character {position + 1}")
            terms.append(_checked(Term(_unquoted_key(match["key"]), _unquoted(match["value"]))))
            position = match.end()
            if position == len(text):
                break
            joint = _AND.match(text, position)
            if joint is None:
                raise _invalid(f"must go on with AND at character {position + 1}")
            position = joint.end()
        if len(terms) > MAX_TERMS:
            raise _invalid(f"must have at most {MAX_TERMS} terms, not {len(terms)}")
        return cls(tuple(terms))

    def condition(self) -> ColumnElement[bool]:
        """The filter as a condition on rows of `adapters`."""
        return and_(*(_condition(term) for term in self.terms))


def _checked(term: Term) -> Term:
    match term:
        case Term("state", value) if value not in VersionState.__members__:
            raise _invalid(f"state must be one of {', '.join(sorted(VersionState.__members__))}")
        case Term("pinned", value) if value not in ("true", "false"):
            raise _invalid("pinned must be true or false")
        case Term("name", value) if "*" in value[:-1]:
            raise _invalid("name takes a star at its end alone")
        case Term("digest", value):
            digest = digest_of(value)
            if digest is None:
                raise _invalid("digest must have 12 to 64 hex digits")
            return Term("digest", digest)
        case Term(key, _) if key not in _KEYS and len(key) <= len(_LABEL):
            raise _invalid(f"keys are {', '.join(_KEYS)} and labels.KEY")
        case Term(key, _) if key not in _KEYS and not key.startswith(_LABEL):
            raise _invalid(f"keys are {', '.join(_KEYS)} and labels.KEY")
    return term


def _condition(term: Term) -> ColumnElement[bool]:
    match term:
        case Term("state", value):
            return _has(versions, versions.c.state == VersionState[value].value)
        case Term("digest", value):
            return _has(versions, _begins_with(versions.c.digest, value))
        case Term("alias", value):
            return _has(aliases, aliases.c.alias == value)
        case Term("pinned", value):
            return adapters.c.is_pinned if value == "true" else ~adapters.c.is_pinned
        case Term("name", value):
            return _name_condition(value)
        case Term(key, value):
            return _has(labels, labels.c.key == key.removeprefix(_LABEL), labels.c.value == value)


def _has(table: Table, *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(table.c.adapter_id == adapters.c.id, *conditions)


def _name_condition(value: str) -> ColumnElement[bool]:
    """On the short name: "ADAPTER" in the default tenant, "TENANT/ADAPTER" in others. A star ends a beginning."""
    wanted, star, _ = value.partition("*")
    matches = _begins_with if star else _equals
    tenant, slash, adapter = wanted.partition("/")
    if slash:
        return and_(adapters.c.tenant == tenant, matches(adapters.c.adapter, adapter))
    in_default = and_(adapters.c.tenant == DEFAULT_TENANT, matches(adapters.c.adapter, wanted))
    if not star:
        return in_default
    return or_(in_default, and_(adapters.c.tenant != DEFAULT_TENANT, _begins_with(adapters.c.tenant, wanted)))


def _equals(column: ColumnElement[Any], text: str) -> ColumnElement[bool]:
    return column == text


def _begins_with(column: ColumnElement[Any], text: str) -> ColumnElement[bool]:
    """As a range, which an index can follow, and in which no character is special."""
    return and_(column >= text, column < text + _ABOVE_NAMES)


def _unquoted_key(key: str) -> str:
    return _LABEL + _unquoted(key.removeprefix(_LABEL)) if key.startswith(_LABEL) else key


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text


def _invalid(description: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation("filter", description)])
