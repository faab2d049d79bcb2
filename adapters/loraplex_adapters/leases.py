"""Who still uses a package: running requests hold leases, and a retired package goes when the last one
ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class AdapterLeases:
    """Counts leases by digest and by name. Owned by one event loop; takes no locks, lives in memory only."""

    def __init__(self, on_unused: Callable[[str], None]) -> None:
        """`on_unused(digest)` is called once for each retired digest, when nothing uses it any more."""
        self._on_unused = on_unused
        self._of_digest: Counter[str] = Counter()
        self._of_name: Counter[str] = Counter()
        self._retired: set[str] = set()

    @contextmanager
    def lease(self, name: str, digest: str) -> Iterator[None]:
        """Hold an adapter for the length of a `with` block."""
        self.acquire(name, digest)
        try:
            yield
        finally:
            self.release(name, digest)

    def acquire(self, name: str, digest: str) -> None:
        """Take one lease. Every call needs its own `release`."""
        self._of_digest[digest] += 1
        self._of_name[name] += 1

    def release(self, name: str, digest: str) -> None:
        """Give one lease back. Raises ValueError if none is held: that is a bug of the caller."""
        if self._of_digest[digest] < 1 or self._of_name[name] < 1:
            raise ValueError(f"adapter '{name}' ({digest[:12]}…) is released more often than it was acquired")
        _decrement(self._of_name, name)
        _decrement(self._of_digest, digest)
        self._let_go_if_unused(digest)

    def retire(self, digest: str) -> None:
        """No name needs this package any more: let go of it now, or when its last lease ends."""
        self._retired.add(digest)
        self._let_go_if_unused(digest)

    def keep(self, digest: str) -> None:
        """Undo `retire`, because the package was registered again while requests still ran on it."""
        self._retired.discard(digest)

    def count_of_digest(self, digest: str) -> int:
        """Leases on a package, under any name."""
        return self._of_digest.get(digest, 0)

    def count_of_name(self, name: str) -> int:
        """Leases taken under a name."""
        return self._of_name.get(name, 0)

    def _let_go_if_unused(self, digest: str) -> None:
        if digest in self._retired and not self.count_of_digest(digest):
            self._retired.discard(digest)
            self._on_unused(digest)


def _decrement(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]  # names come and go; their zeros must not pile up
