"""A package stays as long as anything uses it, and goes once."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from loraplex_adapters.leases import PackageLeases

DIGESTS = st.sampled_from(["a", "b"])


def test_a_retired_package_goes_with_its_last_lease_and_only_once() -> None:
    gone: list[str] = []
    leases = PackageLeases(gone.append)
    with leases.lease("a"):
        with leases.lease("a"):
            leases.retire("a")
        assert gone == []
    assert gone == ["a"]
    with leases.lease("a"):
        pass
    assert gone == ["a"]


def test_a_package_that_is_registered_again_stays() -> None:
    gone: list[str] = []
    leases = PackageLeases(gone.append)
    with leases.lease("a"):
        leases.retire("a")
        leases.keep("a")
    assert gone == []


def test_a_lease_is_not_given_back_twice() -> None:
    leases = PackageLeases(lambda digest: None)
    leases.acquire("a")
    leases.release("a")
    with pytest.raises(ValueError, match="more often"):
        leases.release("a")


class Leases(RuleBasedStateMachine):
    """Against counts kept apart."""

    def __init__(self) -> None:
        super().__init__()
        self.gone: list[str] = []
        self.leases = PackageLeases(self.gone.append)
        self.held = {"a": 0, "b": 0}
        self.retired = {"a": False, "b": False}
        self.expected: list[str] = []

    @rule(digest=DIGESTS)
    def acquire(self, digest: str) -> None:
        self.leases.acquire(digest)
        self.held[digest] += 1

    @rule(digest=DIGESTS)
    def release(self, digest: str) -> None:
        if self.held[digest]:
            self.held[digest] -= 1
            self._expect(digest)
            self.leases.release(digest)

    @rule(digest=DIGESTS)
    def retire(self, digest: str) -> None:
        self.retired[digest] = True
        self._expect(digest)
        self.leases.retire(digest)

    @rule(digest=DIGESTS)
    def keep(self, digest: str) -> None:
        self.retired[digest] = False
        self.leases.keep(digest)

    @invariant()
    def agrees(self) -> None:
        assert self.gone == self.expected
        assert self.leases.num_held == sum(self.held.values())
        for digest, count in self.held.items():
            assert self.leases.count(digest) == count

    def _expect(self, digest: str) -> None:
        if self.retired[digest] and not self.held[digest]:
            self.retired[digest] = False
            self.expected.append(digest)


TestLeases = Leases.TestCase
