"""What happens to the load, the client and the server while requests run: kinds, and when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from loraplex_loadtest.spec import Spec

Share = Annotated[float, Field(ge=0, le=1)]


class _Disturbance(Spec):
    at_s: NonNegativeFloat  # since the run began
    every_s: PositiveFloat | None = None  # again after so long, `times` times in all
    times: PositiveInt = 1


class _ForAWhile(_Disturbance):
    """Concerns a share of the requests that are sent within `for_s`."""

    for_s: PositiveFloat
    share: Share = 1.0


class CancelStreams(_ForAWhile):
    """Give up after some tokens."""

    kind: Literal["cancel"]
    after_tokens: PositiveInt = 4


class ReadSlowly(_ForAWhile):
    """Sleep between two messages of a stream."""

    kind: Literal["slow_reading"]
    pause_s: PositiveFloat


class SetDeadlines(_ForAWhile):
    """Deadlines shorter than the client's own."""

    kind: Literal["deadline"]
    deadline_s: PositiveFloat


class ReopenConnections(_Disturbance):
    """New connections for new requests; the old ones close behind their last stream."""

    kind: Literal["reopen_connections"]


class RegisterAdapters(_Disturbance):
    """Upload variants of a package under new names."""

    kind: Literal["register"]
    prefix: str = "load-new"
    count: PositiveInt = 1
    package: Path | None = None  # None: the run's own
    delete_after: bool = True  # once the run is over


class UpdateAdapter(_Disturbance):
    """Upload another version of an adapter and promote it."""

    kind: Literal["update"]
    name: str | None = None  # None: the run's first adapter
    package: Path | None = None


class RollBackAdapter(_Disturbance):
    """Let "stable" point at the version before."""

    kind: Literal["rollback"]
    name: str | None = None


class DeleteAdapter(_Disturbance):
    """Remove an adapter; what runs on it finishes, what comes is refused."""

    kind: Literal["delete"]
    name: str


class StartTraining(_Disturbance):
    """Create a training job on the server and follow it; one that still runs when the load ends is cancelled."""

    kind: Literal["train"]
    recipe: Path | Literal["bundled"] = "bundled"  # bundled: a small one of our own, with its data
    files: tuple[str, ...] = ()  # that the recipe names, relative to it; they are sent with it
    data_folder: str = ""  # instead of files: a folder of the server's machine
    tenant: str = "default"
    alias: str = ""  # of the version that comes of it; empty: "candidate"
    delete_after: bool = True  # the adapter, once the run is over, if the job made a new one


class KillEngine(_Disturbance):
    """SIGKILL to the engine's process of a server on this machine."""

    kind: Literal["kill_engine"]


OnRequests = CancelStreams | ReadSlowly | SetDeadlines
OnServer = RegisterAdapters | UpdateAdapter | RollBackAdapter | DeleteAdapter | StartTraining | KillEngine
Disturbance = Annotated[OnRequests | ReopenConnections | OnServer, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One moment of a disturbance."""

    at_s: float
    what: Disturbance
    number: int  # which of its times, from 0


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How a request is treated. 0: not at all."""

    cancel_after_tokens: int = 0
    read_pause_s: float = 0.0
    deadline_s: float = 0.0


def occurrences(disturbances: Sequence[Disturbance], kinds: Any = object) -> list[Occurrence]:
    """All moments of disturbances of some classes, in order."""
    found = [
        Occurrence(at_s, what, number)
        for what in disturbances
        if isinstance(what, kinds)
        for number, at_s in enumerate(_moments(what))
    ]
    return sorted(found, key=lambda one: one.at_s)


def behaviour_at(
    usual: Behaviour, disturbances: Sequence[Disturbance], at_s: float, draws: Sequence[float]
) -> Behaviour:
    """What a request that is sent at `at_s` does. `draws` are three of [0, 1) that belong to the request."""
    cancel, pause, deadline = usual.cancel_after_tokens, usual.read_pause_s, usual.deadline_s
    for what in disturbances:
        if not isinstance(what, OnRequests) or not _concerns(what, at_s):
            continue
        if isinstance(what, CancelStreams) and draws[0] < what.share:
            cancel = what.after_tokens
        elif isinstance(what, ReadSlowly) and draws[1] < what.share:
            pause = what.pause_s
        elif isinstance(what, SetDeadlines) and draws[2] < what.share:
            deadline = what.deadline_s
    return Behaviour(cancel, pause, deadline)


def _concerns(what: OnRequests, at_s: float) -> bool:
    return any(start <= at_s < start + what.for_s for start in _moments(what))


def _moments(what: _Disturbance) -> Iterator[float]:
    for number in range(what.times if what.every_s else 1):
        yield what.at_s + number * (what.every_s or 0.0)
