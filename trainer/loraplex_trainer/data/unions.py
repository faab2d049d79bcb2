"""Groups of things of which some belong together."""

from __future__ import annotations


class Unions:
    """Disjoint sets over 0 … n - 1; a set's name is its smallest member."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, item: int) -> int:
        """The smallest member of the set that `item` is in."""
        root = item
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[item] != root:
            self._parent[item], item = root, self._parent[item]
        return root

    def join(self, one: int, other: int) -> None:
        """Both are in one set from now on."""
        first, second = sorted((self.find(one), self.find(other)))
        self._parent[second] = first
