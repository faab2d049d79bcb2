"""Training and validation: whole clusters, by a hash of what is in them, alike in every tier."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

from loraplex_trainer.data.row import Row
from loraplex_trainer.recipe.sections import ValSection


def split_rows(rows: Sequence[Row], val: ValSection) -> tuple[list[Row], list[Row]]:
    """(train, val), each sorted by id. The same rows are split the same way in whatever order they come.

    The validation part is `share` of the rows, within min and max, and never more than half; a share of 0 is none.
    A tier gives its part of it, as near as whole clusters allow.
    """
    wanted = num_val(len(rows), val)
    clusters: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        clusters[row.cluster or row.id].append(row)
    by_tier: dict[int, list[str]] = defaultdict(list)
    for name, members in clusters.items():
        by_tier[_tier(members)].append(name)
    chosen: set[str] = set()
    for tier, quota in _quotas(
        {tier: _size(names, clusters) for tier, names in by_tier.items()}, wanted
    ).items():
        chosen |= _choose(sorted(by_tier[tier], key=_draw), clusters, quota)
    ordered = sorted(rows, key=lambda row: (row.id, row.origin))
    return (
        [row for row in ordered if (row.cluster or row.id) not in chosen],
        [row for row in ordered if (row.cluster or row.id) in chosen],
    )


def num_val(total: int, val: ValSection) -> int:
    """Rows of the validation part."""
    if val.share == 0:
        return 0
    return min(max(round(total * val.share), val.min), val.max, total // 2)


def _tier(members: Sequence[Row]) -> int:
    """The tier that most of a cluster's rows have; 0: none."""
    counts = Counter(row.tier or 0 for row in members)
    return min(counts, key=lambda tier: (-counts[tier], tier))


def _size(names: Sequence[str], clusters: dict[str, list[Row]]) -> int:
    return sum(len(clusters[name]) for name in names)


def _quotas(sizes: dict[int, int], wanted: int) -> dict[int, int]:
    """`wanted` shared out over the tiers by their sizes, largest remainders first."""
    total = sum(sizes.values())
    exact = {tier: wanted * size / total for tier, size in sizes.items()} if total else {}
    quotas = {tier: int(value) for tier, value in exact.items()}
    rest = sorted(exact, key=lambda tier: (quotas[tier] - exact[tier], tier))
    for tier in rest[: wanted - sum(quotas.values())]:
        quotas[tier] += 1
    return quotas


def _choose(names: Sequence[str], clusters: dict[str, list[Row]], quota: int) -> set[str]:
    """Clusters in order while they fit into the quota."""
    chosen: set[str] = set()
    for name in names:
        size = len(clusters[name])
        if size <= quota:
            chosen.add(name)
            quota -= size
        if quota == 0:
            break
    return chosen


def _draw(cluster: str) -> str:
    """The same for a cluster in every build."""
    return hashlib.sha256(f"validation/{cluster}".encode()).hexdigest()
