from __future__ import annotations

import pytest

from loraplex_adapters.leases import AdapterLeases

DIGEST = "a" * 64


def test_a_retired_package_goes_when_its_last_lease_ends() -> None:
    unused: list[str] = []
    leases = AdapterLeases(unused.append)
    leases.acquire("shop", DIGEST)
    leases.acquire("alias", DIGEST)

    leases.retire(DIGEST)
    leases.release("shop", DIGEST)
    assert unused == []
    leases.release("alias", DIGEST)

    assert unused == [DIGEST]


def test_a_package_without_leases_goes_at_once() -> None:
    unused: list[str] = []

    AdapterLeases(unused.append).retire(DIGEST)

    assert unused == [DIGEST]


def test_a_package_that_is_not_retired_stays() -> None:
    unused: list[str] = []
    leases = AdapterLeases(unused.append)

    with leases.lease("shop", DIGEST):
        assert leases.count_of_digest(DIGEST) == leases.count_of_name("shop") == 1

    assert leases.count_of_digest(DIGEST) == leases.count_of_name("shop") == 0
    assert unused == []


def test_a_package_registered_again_in_time_stays() -> None:
    unused: list[str] = []
    leases = AdapterLeases(unused.append)

    with leases.lease("shop", DIGEST):
        leases.retire(DIGEST)
        leases.keep(DIGEST)

    assert unused == []


def test_a_lease_ends_when_its_request_fails() -> None:
    unused: list[str] = []
    leases = AdapterLeases(unused.append)

    def fail_while_retired() -> None:
        with leases.lease("shop", DIGEST):
            leases.retire(DIGEST)
            raise RuntimeError("request failed")

    with pytest.raises(RuntimeError, match="request failed"):
        fail_while_retired()

    assert unused == [DIGEST]


def test_a_package_goes_only_once() -> None:
    unused: list[str] = []
    leases = AdapterLeases(unused.append)
    leases.retire(DIGEST)

    with leases.lease("shop", DIGEST):
        pass

    assert unused == [DIGEST]


def test_releasing_what_is_not_held_is_an_error() -> None:
    leases = AdapterLeases(lambda digest: None)
    leases.acquire("shop", DIGEST)

    with pytest.raises(ValueError, match="more often"):
        leases.release("other", DIGEST)

    assert leases.count_of_digest(DIGEST) == 1
