"""One load test from beginning to end: server asked, adapters made, plan sent, counters compared, all put away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from loraplex_client.names import short_name
from loraplex_loadtest.counters import Reconciliation, Scrape, reconcile, scrape, settled_scrape
from loraplex_loadtest.disturbances.actions import Happening, ServerActions
from loraplex_loadtest.disturbances.schedule import OnServer, occurrences
from loraplex_loadtest.environment import environment
from loraplex_loadtest.errors import ScenarioInvalidError
from loraplex_loadtest.records import CANCELLED_BY_PLAN, OK, Recording
from loraplex_loadtest.running.controller import Controller
from loraplex_loadtest.running.order import Snapshot
from loraplex_loadtest.scenario import Scenario
from loraplex_loadtest.targets.connect import inspect
from loraplex_loadtest.targets.target import Inspector, TargetAddress, TargetKind
from loraplex_loadtest.workload.plan import Plan, adapters_of, make_plan
from loraplex_loadtest.workload.questions import write_questions

_TOLD_NAMES = 10
"""How many adapters a message names."""


@dataclass(frozen=True)
class Outcome:
    """What a run left behind, before anything is computed of it."""

    plan: Plan
    recording: Recording
    happened: tuple[Happening, ...]
    server: dict[str, Any]  # what it said of itself
    before: Scrape | None
    after: Scrape | None
    reconciliation: Reconciliation | None
    has_exact_prompts: bool
    was_stopped: bool  # before its end, by its watcher
    environment: dict[str, Any] = field(default_factory=environment)


class Watcher:
    """Told how a run goes; may end it. The base class only looks on."""

    def on_setup(self, done: int, total: int) -> None:
        """Adapters registered before the run."""

    def on_start(self, plan: Plan) -> None:
        """The first request is about to be sent."""

    def on_progress(self, snapshots: Sequence[Snapshot], happened: Sequence[Happening]) -> bool:
        """Newest snapshot of each generator. True: send nothing more."""
        return False


async def plan_run(scenario: Scenario, address: TargetAddress) -> Plan:
    """The plan alone, for `--dry-run`; asks the server for its adapters if the scenario does."""
    variants = [f"{scenario.setup.prefix}-{number:04d}" for number in range(scenario.setup.variants)]
    inspector = inspect(address)
    try:
        return make_plan(scenario, await _names(scenario, inspector.adapters, variants))
    finally:
        await inspector.close()


async def run_scenario(scenario: Scenario, address: TargetAddress, watcher: Watcher | None = None) -> Outcome:
    """Runs it. Raises LoadTestError if it cannot; failures of requests are records, not errors."""
    watcher = watcher or Watcher()
    inspector = inspect(address)
    try:
        server = await inspector.describe()
        async with ServerActions(scenario, address) as actions:
            variants = await actions.register_variants(watcher.on_setup)
            names = await _names(scenario, inspector.adapters, variants)
            plan = make_plan(scenario, names)
            await _check_named(plan, address, inspector)
            questions, is_exact = await write_questions(plan, inspector)
            before = await scrape(address.metrics_url)
            async with Controller(plan, address, questions) as controller:
                recording, was_stopped = await _run(controller, plan, actions, watcher, _first(plan))
            after = await _scrape_after(address, before, recording)
            return Outcome(
                plan=plan,
                recording=recording,
                happened=tuple(
                    sorted((*_on_requests(scenario), *actions.happened), key=lambda one: one.began_s)
                ),
                server=server,
                before=before,
                after=after,
                reconciliation=None
                if before is None or after is None
                else reconcile(address.kind, before, after, recording.records, actions.deleted),
                has_exact_prompts=is_exact,
                was_stopped=was_stopped,
            )
    finally:
        await inspector.close()


async def _run(
    controller: Controller, plan: Plan, actions: ServerActions, watcher: Watcher, first_adapter: str
) -> tuple[Recording, bool]:
    was_stopped = False

    def on_progress(snapshots: Sequence[Snapshot]) -> None:
        nonlocal was_stopped
        if watcher.on_progress(snapshots, actions.happened) and not was_stopped:
            was_stopped = True
            controller.stop()

    watcher.on_start(plan)
    controller.start()
    following = asyncio.create_task(actions.follow(controller.start_s, first_adapter))
    try:
        recording = await controller.finish(on_progress)
        actions.end_load()
        if not was_stopped:
            await following  # what was begun on the server ends before it is put away
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    return recording, was_stopped


async def _names(
    scenario: Scenario, registered: Callable[[], Any], variants: Sequence[str]
) -> dict[str, list[str]]:
    must_ask = any(traffic.adapters.names == "registered" for traffic in scenario.traffic)
    found = await registered() if must_ask else []
    return {traffic.name: adapters_of(traffic, found, variants) for traffic in scenario.traffic}


async def _check_named(plan: Plan, address: TargetAddress, inspector: Inspector) -> None:
    """Raises ScenarioInvalidError for an adapter that is not there, before a whole run of refusals tells the same.

    Other servers need not list all that they answer for, and what happens to the server may make an adapter on the way.
    """
    changes_server = any(isinstance(one.what, OnServer) for one in occurrences(plan.scenario.disturbances))
    if address.kind is not TargetKind.LORAPLEX or changes_server:
        return
    asked = {_listed_name(request.adapter) for request in plan.requests if request.adapter}
    if not asked:
        return
    registered = await inspector.adapters()
    if missing := sorted(asked - set(registered)):
        others = "" if len(registered) <= _TOLD_NAMES else ", …"
        raise ScenarioInvalidError(
            f"the server has no adapter {', '.join(map(repr, missing[:_TOLD_NAMES]))}; "
            f"it has {', '.join(registered[:_TOLD_NAMES]) or 'none'}{others}"
        )


def _listed_name(asked: str) -> str:
    """Without alias or digest, and as the list of adapters has it."""
    return short_name(asked.partition("@")[0]).removeprefix("default/")


async def _scrape_after(address: TargetAddress, before: Scrape | None, recording: Recording) -> Scrape | None:
    if before is None:
        return None
    ended = sum(record.status in (OK, CANCELLED_BY_PLAN) for record in recording.records)
    return await settled_scrape(address.kind, address.metrics_url, before, ended)


def _first(plan: Plan) -> str:
    return next((request.adapter for request in plan.requests if request.adapter), "")


def _on_requests(scenario: Scenario) -> list[Happening]:
    """What happened to the requests rather than the server, for the timeline."""
    found = []
    for one in occurrences(scenario.disturbances):
        if not isinstance(one.what, OnServer):
            until_s = one.at_s + getattr(one.what, "for_s", 0.0)
            found.append(Happening(one.what.kind, one.at_s, one.at_s, until_s, "", False))
    return found
