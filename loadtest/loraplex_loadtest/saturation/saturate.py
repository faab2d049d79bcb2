"""Tries rates on a server until the largest sustainable one is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from loraplex_loadtest.disturbances.actions import Happening, ServerActions
from loraplex_loadtest.environment import environment
from loraplex_loadtest.result import SCHEMA, result_document, scenario_document
from loraplex_loadtest.run import Watcher, run_scenario
from loraplex_loadtest.running.order import Snapshot
from loraplex_loadtest.saturation.detector import OverSaturation
from loraplex_loadtest.saturation.search import Saturation, SearchSettings, Trial, search
from loraplex_loadtest.scenario import Scenario, Setup, make_scenario
from loraplex_loadtest.targets.connect import inspect
from loraplex_loadtest.targets.target import TargetAddress
from loraplex_loadtest.workload.plan import adapters_of

OnTrial = Callable[[Trial], None]


class _Stopper(Watcher):
    """Ends a trial that is lost."""

    def __init__(self, scenario: Scenario) -> None:
        self._detector = OverSaturation(scenario.objectives.ttft_s or 0.0)

    def on_progress(self, snapshots: Sequence[Snapshot], happened: Sequence[Happening]) -> bool:
        first_tokens = [value for one in snapshots for value in one.ttft_s]
        mean = sum(first_tokens) / len(first_tokens) if first_tokens else math.nan
        self._detector.add(snapshots[0].at_s, sum(one.in_flight for one in snapshots), mean)
        return self._detector.is_certain


async def saturate(
    scenario: Scenario,
    address: TargetAddress,
    settings: SearchSettings,
    on_trial: OnTrial = lambda trial: None,
) -> Saturation:
    """Varies the rate of the scenario's first traffic. Adapters of its setup are registered once, for all trials."""
    async with ServerActions(scenario, address) as actions:
        variants = await actions.register_variants(lambda done, total: None)
        scenario = await _settled(scenario, address, variants)
        steps = search(settings)
        rate = next(steps)
        while True:
            trial = await _try(scenario, address, settings, rate)
            on_trial(trial)
            try:
                rate = steps.send(trial)
            except StopIteration as done:
                answer: Saturation = done.value
                return answer


def saturation_document(scenario: Scenario, settings: SearchSettings, found: Saturation) -> dict[str, Any]:
    """As JSON."""
    return {
        "schema": SCHEMA,
        "kind": "saturation",
        "scenario": scenario_document(scenario),
        "environment": environment(),
        "settings": settings.model_dump(mode="json"),
        **found.model_dump(mode="json"),
    }


async def _try(scenario: Scenario, address: TargetAddress, settings: SearchSettings, rate: float) -> Trial:
    outcome = await run_scenario(at_rate(scenario, rate, settings.trial_s), address, _Stopper(scenario))
    document = result_document(outcome)
    rates, figures = document["rates"], document["figures"]
    is_valid = bool(document["is_valid"])
    return Trial(
        rate=rate,
        goodput_share=rates["goodput_share"],
        requests_per_s=rates["requests_per_s"],
        tokens_per_s=rates["tokens_per_s"],
        ttft_p50_s=_value(figures["ttft"], "p50"),
        ttft_p90_s=_value(figures["ttft"], "p90"),
        e2e_p50_s=_value(figures["e2e"], "p50"),
        was_stopped=outcome.was_stopped,
        is_valid=is_valid,
        # Late sends are charged to the requests: what is good in spite of them is good.
        is_good=not outcome.was_stopped and rates["goodput_share"] >= settings.min_goodput,
    )


def at_rate(scenario: Scenario, rate: float, duration_s: float) -> Scenario:
    """The scenario with its first traffic at a rate: its own process, if it is one of constant rate, else Poisson."""
    document = scenario.model_dump(mode="python")
    arrivals = document["traffic"][0]["arrivals"]
    if arrivals["kind"] not in ("constant", "poisson", "gamma"):
        arrivals = {"kind": "poisson"}
    document["traffic"][0]["arrivals"] = {**arrivals, "rate": rate, "duration_s": duration_s}
    return make_scenario(document)


async def _settled(scenario: Scenario, address: TargetAddress, variants: Sequence[str]) -> Scenario:
    """Adapters by their names, so that no trial registers or asks again."""
    inspector = inspect(address)
    try:
        await inspector.describe()
        asks = any(traffic.adapters.names == "registered" for traffic in scenario.traffic)
        registered = await inspector.adapters() if asks else []
    finally:
        await inspector.close()
    traffic = tuple(
        one.model_copy(
            update={
                "adapters": one.adapters.model_copy(
                    update={"names": tuple(name or "base" for name in adapters_of(one, registered, variants))}
                )
            }
        )
        for one in scenario.traffic
    )
    return scenario.model_copy(update={"traffic": traffic, "setup": Setup(package=scenario.setup.package)})


def _value(figure: dict[str, Any], name: str) -> float | None:
    return figure[name]["value"] if name in figure else None
