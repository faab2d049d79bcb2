"""What processes beside the test do with a registry. They import no more than that needs, to start quickly."""

from __future__ import annotations

import itertools
import sys
from concurrent.futures import ThreadPoolExecutor

from loraplex_adapters.errors import EtagMismatchError
from loraplex_adapters.names import AdapterName
from loraplex_adapters.registry import AdapterRegistry, Once
from loraplex_adapters.releases import Adapter
from tests.unit.adapters.release_case import SHOP, version


def open_and_count(url: str) -> int:
    """Start on a database as a server does."""
    registry = AdapterRegistry(url)
    count = registry.count()
    registry.close()
    return count


def register_and_increment(url: str, writer: str, times: int) -> list[int]:
    """By turns register an adapter and raise a number that all writers raise; the revisions of all that."""
    registry = AdapterRegistry(url)
    revisions = []
    for i in range(times):
        revisions.append(registry.register(AdapterName(writer, f"a{i}"), version()).revision)
        revisions.append(_increment(registry).revision)
    registry.close()
    return revisions


def _increment(registry: AdapterRegistry) -> Adapter:
    while True:
        read = registry.get(SHOP)
        labels = {"number": str(int(read.labels["number"]) + 1)}
        try:
            return registry.update_labels(SHOP, labels, etag=str(read.revision))
        except EtagMismatchError:
            continue  # another writer was quicker


def send_one_request_often(url: str, sender: str, times: int) -> list[Adapter]:
    """Answers to one request that is sent again and again at once; what it would do tells who sent it."""
    registry = AdapterRegistry(url)

    def send(i: int) -> Adapter:
        return registry.update_labels(SHOP, {"sent by": f"{sender} {i}"}, once=Once("id", "content"))

    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(send, range(times)))
    registry.close()
    return answers


def register_for_ever(url: str, first: int) -> None:
    """Register one adapter after another, and say so of each when it is done."""
    registry = AdapterRegistry(url)
    for i in itertools.count(first):
        adapter = registry.register(AdapterName("t", f"a{i}"), version(), labels={"a": "b"})
        sys.stdout.write(f"{i} {adapter.revision}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    register_for_ever(sys.argv[1], int(sys.argv[2]))
