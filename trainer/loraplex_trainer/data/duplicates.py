"""Rows that say the same: exact and near duplicates are dropped, conflicting answers reported, clusters named."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from xxhash import xxh64_hexdigest

from loraplex_trainer.data.near import NearIndex
from loraplex_trainer.data.progress import Progress, silent
from loraplex_trainer.data.row import Row
from loraplex_trainer.data.text import match_key
from loraplex_trainer.data.unions import Unions
from loraplex_trainer.recipe.sections import CleanSection


@dataclass
class DedupResult:
    """Rows that remain, each with its cluster; which those are does not depend on the order they came in."""

    rows: list[Row]
    exact: int = 0
    near: int = 0
    largest: list[tuple[Row, int]] = field(
        default_factory=list
    )  # (kept row, rows that it stands for), above 1
    conflicts: list[tuple[Row, ...]] = field(default_factory=list)  # one conversation, several answers
    conflicts_dropped: int = 0


def deduplicate(rows: Sequence[Row], clean: CleanSection, progress: Progress = silent) -> DedupResult:
    """Drop duplicates as the recipe says, and join into clusters what must stay on one side of the split:
    similar rows, rows of one conversation, rows that ask the same in it, rows with the same span as answer."""
    # The best of each group comes first: with a grader, then the longest answer, then by id.
    ordered = sorted(rows, key=lambda row: (row.grader is None, -len(row.completion), row.id, row.origin))
    result = DedupResult([])
    stands_for: dict[str, int] = defaultdict(int)
    if clean.dedup.exact:
        ordered = _without_exact(ordered, result, stands_for)
    unions = Unions(len(ordered))
    if clean.dedup.near is not None and len(ordered) > 1:
        kept, unions, ordered = _without_near(ordered, clean.dedup.near, result, stands_for, progress)
    else:
        kept = list(range(len(ordered)))
    _join_by(ordered, unions)
    result.rows = [replace(ordered[i], cluster=ordered[unions.find(i)].id) for i in kept]
    result.largest = _largest(result.rows, stands_for)
    result.conflicts = conflicts(result.rows)
    if clean.conflicts == "drop":
        gone = {id(row) for group in result.conflicts for row in group}
        result.conflicts_dropped = len(gone)
        result.rows = [row for row in result.rows if id(row) not in gone]
    return result


def exact_key(row: Row) -> str:
    """Equal for rows whose turns are the same words, whatever their case, spaces and punctuation."""
    return _hashed([*(message["content"] for message in row.prompt), row.completion])


def question_key(row: Row) -> str:
    """Equal for rows that ask the same in the same conversation."""
    return _hashed([message["content"] for message in row.prompt])


def _hashed(texts: Sequence[str]) -> str:
    return xxh64_hexdigest("\x00".join(map(match_key, texts)).encode())


def conflicts(rows: Sequence[Row]) -> list[tuple[Row, ...]]:
    """Groups of rows that answer one question in more than one way, largest first."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[question_key(row)].append(row)
    several = [
        tuple(group) for group in groups.values() if len({match_key(row.completion) for row in group}) > 1
    ]
    return sorted(several, key=lambda group: (-len(group), group[0].id))


def _without_exact(rows: list[Row], result: DedupResult, stands_for: dict[str, int]) -> list[Row]:
    first: dict[str, Row] = {}
    kept = []
    for row in rows:
        key = exact_key(row)
        if key in first:
            result.exact += 1
            stands_for[first[key].id] += 1
        else:
            first[key] = row
            kept.append(row)
    return kept


def _without_near(
    rows: list[Row], threshold: float, result: DedupResult, stands_for: dict[str, int], progress: Progress
) -> tuple[list[int], Unions, list[Row]]:
    """Positions that are kept, and all similar ones joined. A row goes if it is similar to one that is kept; of a
    chain of three the ends may both stay, and are in one cluster."""
    unions = Unions(len(rows))
    similar: dict[int, list[int]] = defaultdict(list)
    index = NearIndex([_whole_text(row) for row in rows], threshold, progress, "comparing rows")
    for one, other in index.pairs():
        unions.join(one, other)
        similar[other].append(one)
    kept: set[int] = set()
    for position, row in enumerate(rows):
        standing = next((other for other in similar[position] if other in kept), None)
        if standing is None:
            kept.add(position)
        else:
            result.near += 1
            stands_for[rows[standing].id] += 1 + stands_for.pop(row.id, 0)
    return sorted(kept), unions, rows


def _join_by(rows: Sequence[Row], unions: Unions) -> None:
    """Join rows that share a conversation, a question, or a span of a document."""
    first: dict[tuple[str, str], int] = {}
    for position, row in enumerate(rows):
        keys = [("question", question_key(row))]
        if row.cluster is not None:
            keys.append(("conversation", row.cluster))
        if row.evidence is not None:
            keys.append(("span", f"{row.source}\x00{row.completion}"))
        for key in keys:
            unions.join(first.setdefault(key, position), position)


def _whole_text(row: Row) -> str:
    return "\n".join([*(message["content"] for message in row.prompt), row.completion])


def _largest(rows: Sequence[Row], stands_for: dict[str, int]) -> list[tuple[Row, int]]:
    counted = [(row, 1 + stands_for[row.id]) for row in rows if stands_for.get(row.id)]
    return sorted(counted, key=lambda item: (-item[1], item[0].id))[:10]
