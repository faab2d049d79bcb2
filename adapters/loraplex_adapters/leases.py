"""Who still uses a package: running requests hold leases, and a retired package goes when the last one ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class PackageLeases:
    """Counts leases by digest. Owned by one event loop; takes no locks, lives in memory only."""

    def __init__(self, on_unused: Callable[[str], None]) -> None:
        """`on_unused(digest)` is called once for each retired digest, when nothing uses it any more."""
        self._on_unused = on_unused
        self._counts: Counter[str] = Counter()
        self._retired: set[str] = set()

    @contextmanager
    def lease(self, digest: str) -> Iterator[None]:
        """Hold a package for the length of a `with` block."""
        self.acquire(digest)
        try:
            yield
        finally:
            self.release(digest)

    def acquire(self, digest: str) -> None:
        """Take one lease. Every call needs its own `release`."""
        self._counts[digest] += 1

    def release(self, digest: str) -> None:
        """Give one lease back. Raises ValueError if none is held: that is a bug of the caller."""
        if self._counts[digest] < 1:
            raise ValueError(f"package {digest[:12]}… is released more often than it was acquired")
        self._counts[digest] -= 1
        if not self._counts[digest]:
            del self._counts[digest]  # digests come and go; their zeros must not pile up
            self._let_go_if_unused(digest)

    def retire(self, digest: str) -> None:
        """No name needs this package any more: let go of it now, or when its last lease ends."""
        self._retired.add(digest)
        self._let_go_if_unused(digest)

    def keep(self, digest: str) -> None:
        """Undo `retire`, because the package was registered again while requests still ran on it."""
        self._retired.discard(digest)

    def count(self, digest: str) -> int:
        """Leases held on a package."""
        return self._counts.get(digest, 0)

    @property
    def num_held(self) -> int:
        """Leases held on all packages."""
        return self._counts.total()

    def _let_go_if_unused(self, digest: str) -> None:
        if digest in self._retired and not self.count(digest):
            self._retired.discard(digest)
            self._on_unused(digest)
