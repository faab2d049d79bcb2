"""`python -m benchmarks.kills`: whole servers are killed at random moments, and what was acknowledged must be there.

`loraplex serve` runs on a tiny base in a process group of its own, with its engine and its admission process. Three
callers write all the time, each in a tenant of its own: registrations by streams of small chunks, by the client's own
upload and from folders; promotions, rollbacks, splits, shadows, pins, labels, deprecations, deletions of versions and
of adapters; and they ask. At a random moment SIGKILL ends the front end alone, or every process of it; some servers are
killed while they start. Registrations take so much longer than other changes that hardly any of these would be under
way; so most kills are aimed at one kind of change, each in turn: callers then send that kind where they can, and the
signal comes within milliseconds of the first. Then another server starts on the same folder, and before anybody writes
again:

- the registry holds every change that was acknowledged, and of the one that each caller had under way all or nothing;
- what is pinned comes into slots;
- every version has its package, bit for bit, and every name, alias and digest is answered by the right version with
  the tokens that its package gave before;
- no other package is left, no image, no upload, no temporary file, no process; what there is of an upload that was
  under way is a beginning of what was sent.

The change that was under way is sent again with the same ids, an upload from the offset that the server says, until it
is acknowledged; the next kill may come before that. The choices follow from the seed; which instruction a signal meets
does not.

Exit code 0: nothing was lost; 1: something was, `failure` says what; 2: wrong options.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import grpc

from benchmarks.kills_checks import check_nothing_is_left, check_restarted
from benchmarks.kills_stage import KillFailure, Stage, kill, new_stage
from benchmarks.kills_writer import Aim, Writer
from benchmarks.kills_writes import CHANGES
from tests.integration.live_server import LiveServer

NUM_WRITERS = 3
_MAX_ACKNOWLEDGED = 8  # writes of one life, before the moment of its kill is drawn
_LONGEST_MOMENT_S = 0.4  # about as long as a few writes of all callers take
_STARTING_SHARE = 0.12  # of the kills
_STUCK_S = 60.0  # without an acknowledgement
_AIMED_SHARE = 0.75  # of the kills of servers that have started
_LONGEST_AIMED_MOMENT_S = 0.01  # about as long as a change takes
_AIM_S = 5.0  # until a kill comes without the change it was aimed at


@dataclass(frozen=True)
class Kill:
    """One kill, decided beforehand."""

    is_while_starting: bool
    everything: bool  # every process of the server, not the front end alone
    num_acknowledged: int  # writes after which the moment begins
    moment: float  # in [0, 1): of the longest one, or of a start
    aim: str  # kind of the change that it is to come into; empty: whatever is under way
    order: int  # seeds that of the processes


def plan_kills(num_kills: int, seed: int) -> list[Kill]:
    """The same for the same arguments. The first server is not killed while it starts: it has nothing to lose."""
    choice = random.Random(seed)
    aims = _aims(random.Random(f"aims {seed}"))
    return [
        Kill(
            is_while_starting=choice.random() < _STARTING_SHARE and number > 0,
            everything=choice.random() < 0.5,
            num_acknowledged=choice.randint(0, _MAX_ACKNOWLEDGED),
            moment=choice.random(),
            aim=next(aims),
            order=choice.getrandbits(32),
        )
        for number in range(num_kills)
    ]


def _aims(choice: random.Random) -> Iterator[str]:
    """Of one kill after another: every kind of change once before one comes again."""
    while True:
        for kind in choice.sample(CHANGES, len(CHANGES)):
            while choice.random() >= _AIMED_SHARE:
                yield ""
            yield kind


@dataclass
class Outcome:
    """What was done, over all lives."""

    writers: list[Writer]
    done: list[Kill] = field(default_factory=list)
    failure: str = ""  # empty: nothing was lost

    @property
    def num_acknowledged(self) -> int:
        return sum(writer.counts.acknowledged.total() for writer in self.writers)

    def carry_out(self, planned: Kill, server: LiveServer) -> None:
        """Raises KillFailure."""
        self.done.append(planned)
        kill(server, random.Random(planned.order), everything=planned.everything)


def kill_servers(
    stage: Stage, kills: Sequence[Kill], seed: int, say: Callable[[str], None] = lambda words: None
) -> Outcome:
    """Kill servers on a stage. The first thing that was lost ends it, and is the outcome's `failure`."""
    outcome = Outcome([Writer(stage, f"t{number}", f"{seed}/{number}") for number in range(NUM_WRITERS)])
    server = stage.start_ready()
    try:
        with server.client(stage.timeout_s) as client:
            stage.learn(client)
        for number, planned in enumerate(kills, start=1):
            if planned.is_while_starting:
                server = stage.start()
                time.sleep(planned.moment * stage.start_seconds[-1])
                outcome.carry_out(planned, server)
            else:
                _live_and_die(server, outcome, planned)
            if number == len(kills) or not kills[number].is_while_starting:
                server = stage.start_ready()
                with server.client(stage.timeout_s) as client:
                    check_restarted(stage, server, client, outcome.writers)
                say(f"kill {number} of {len(kills)}: {outcome.num_acknowledged} writes acknowledged so far")
        _come_to_an_end(stage, server, outcome)
    except KillFailure as failure:
        outcome.failure = f"after kill {len(outcome.done)}: {failure}"
    finally:
        server.process.kill()  # one that was stopped feels nothing
    return outcome


def _live_and_die(server: LiveServer, outcome: Outcome, planned: Kill) -> None:
    """All writers at once, until SIGKILL comes between them."""
    acknowledged, aim = threading.Semaphore(0), Aim()
    threads = [
        threading.Thread(target=writer.run, args=(server, acknowledged.release, aim))
        for writer in outcome.writers
    ]
    for thread in threads:
        thread.start()
    # In writes, not in seconds: else a slow machine's servers would all die before they did anything.
    for _ in range(planned.num_acknowledged):
        if not acknowledged.acquire(timeout=_STUCK_S):
            break
    aim.kind = planned.aim
    if aim.kind and aim.is_sent.wait(_AIM_S):
        time.sleep(planned.moment * _LONGEST_AIMED_MOMENT_S)
    else:
        time.sleep(planned.moment * _LONGEST_MOMENT_S)
    outcome.carry_out(planned, server)
    for thread in threads:
        thread.join()
    for writer in outcome.writers:
        if writer.failure is not None:
            raise KillFailure(f"tenant {writer.tenant}: {writer.pending}: {writer.failure!r}")
        if writer.pending is not None:
            writer.counts.under_way[writer.pending.kind] += 1


def _come_to_an_end(stage: Stage, server: LiveServer, outcome: Outcome) -> None:
    """What was under way is finished, then everything deleted; a server that is stopped leaves nothing at all."""
    with (
        server.client(stage.timeout_s) as client,
        grpc.insecure_channel(server.target, [("grpc.enable_retries", 0)]) as channel,
    ):
        for writer in outcome.writers:
            writer.finish_pending(client, channel)
        check_restarted(stage, server, client, outcome.writers)
        check_nothing_is_left(stage, client)
    try:
        server.stop()
    except AssertionError as error:  # it did not, or its log holds a bug's traceback
        raise KillFailure(str(error)) from None
    if left := os.listdir(stage.scratch):
        raise KillFailure(f"left of temporary files: {left}")


def report(outcome: Outcome, stage: Stage, seed: int, seconds: float) -> dict[str, Any]:
    """The JSON object."""
    counts = [writer.counts for writer in outcome.writers]
    return {
        "kills": len(outcome.done),
        "front_end_alone": sum(not each.everything for each in outcome.done),
        "every_process": sum(each.everything for each in outcome.done),
        "while_starting": sum(each.is_while_starting for each in outcome.done),
        "failure": outcome.failure,
        "verdict": "missed" if outcome.failure else "met",
        "acknowledged": dict(sum((each.acknowledged for each in counts), Counter[str]())),
        "under_way": dict(sum((each.under_way for each in counts), Counter[str]())),
        "took_effect_unanswered": sum(each.took_effect for each in counts),
        "uploads_gone_on_with": sum(each.resumed for each in counts),
        "bytes_not_sent_again": sum(each.resumed_bytes for each in counts),
        "answers_checked": sum(each.answers for each in counts),
        "start_seconds": {
            "median": round(statistics.median(stage.start_seconds), 2),
            "max": round(max(stage.start_seconds), 2),
        },
        "seconds": round(seconds, 1),
        "seed": seed,
        "versions": {name: version(name) for name in ("loraplex", "torch", "grpcio")},
    }


def table(found: dict[str, Any]) -> str:
    """For people."""
    return "\n".join(f"{name:<24}{value}" for name, value in found.items())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="default: 100")
    parser.add_argument("--seed", type=int, default=1, help="default: 1")
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    options = parser.parse_args(arguments)
    began_s = time.monotonic()
    with new_stage() as stage:
        outcome = kill_servers(
            stage,
            plan_kills(options.kills, options.seed),
            options.seed,
            lambda words: print(words, file=sys.stderr, flush=True),
        )
        found = report(outcome, stage, options.seed, time.monotonic() - began_s)
    print(table(found), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(json.dumps(found))
    return 1 if outcome.failure else 0


if __name__ == "__main__":
    sys.exit(main())
