"""The plan of a run: every request that is meant, as a pure function of scenario and adapter names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from zlib import crc32

import numpy as np

from loraplex_loadtest.disturbances.schedule import Behaviour, behaviour_at
from loraplex_loadtest.errors import ScenarioInvalidError
from loraplex_loadtest.scenario import BASE, Client, Scenario, Traffic
from loraplex_loadtest.workload.arrivals import ClosedLoop, TraceArrivals, duration_of
from loraplex_loadtest.workload.popularity import pick_tenants

DEFAULT_TENANT = "default"


@dataclass(frozen=True, slots=True)
class IntendedRequest:
    """One request as it is meant."""

    index: int
    traffic: str
    tenant: str
    adapter: str  # empty: the base model
    at_s: float  # since the run began; of a user's request: 0, it comes after the one before
    user: int  # of a closed loop; -1 in an open one
    think_s: float  # before it, in a closed loop
    prompt_tokens: int
    max_tokens: int
    prefix_tokens: int  # of the prompt, shared by all of the tenant
    prompt_seed: int
    draws: tuple[float, float, float]  # decide whether a disturbance concerns it
    behaviour: Behaviour


@dataclass(frozen=True, slots=True)
class Plan:
    """All requests in order of their moments, and what they need to know of their traffic."""

    scenario: Scenario
    requests: tuple[IntendedRequest, ...]
    duration_s: float

    def traffic(self, request: IntendedRequest) -> Traffic:
        return next(traffic for traffic in self.scenario.traffic if traffic.name == request.traffic)

    @property
    def window_s(self) -> tuple[float, float]:
        """Measured are the requests meant for a moment in it."""
        window = self.scenario.window
        end_s = self.duration_s - window.cool_down_s
        if any(request.at_s == end_s == self.duration_s for request in self.requests):
            # A trace ends with its last request, which is a part of it.
            end_s = math.nextafter(end_s, math.inf)
        return window.warm_up_s, max(window.warm_up_s, end_s)

    def rows(self) -> list[dict[str, Any]]:
        """As `--dry-run` prints it."""
        return [
            {key: value for key, value in asdict(request).items() if key != "draws"}
            for request in self.requests
        ]


def make_plan(scenario: Scenario, names: Mapping[str, Sequence[str]]) -> Plan:
    """`names` are the adapters of each traffic, by its name; see `adapters_of`."""
    requests: list[IntendedRequest] = []
    users = 0
    for traffic in scenario.traffic:
        made = _requests(scenario, traffic, [*names[traffic.name]], users)
        users += traffic.arrivals.users if isinstance(traffic.arrivals, ClosedLoop) else 0
        requests += made
    requests.sort(key=lambda request: request.at_s)  # stable: a closed loop's keep their order
    numbered = tuple(_renumbered(request, index) for index, request in enumerate(requests))
    return Plan(scenario, numbered, max(duration_of(traffic.arrivals) for traffic in scenario.traffic))


def adapters_of(traffic: Traffic, registered: Sequence[str], variants: Sequence[str]) -> list[str]:
    """Names that a traffic draws from; "" is the base. Raises ScenarioInvalidError if there are none."""
    wanted = traffic.adapters.names
    if wanted == "registered":
        names = [*registered]
    elif wanted == "variants":
        names = [*variants]
    else:
        names = ["" if name == BASE else name for name in wanted]
    if not names:
        told = 'the server has no adapters: register some, or name "base"'
        raise ScenarioInvalidError(
            told if wanted == "registered" else "setup.variants is 0, and traffic asks for them"
        )
    return names[: traffic.adapters.first]


def _requests(
    scenario: Scenario, traffic: Traffic, names: list[str], first_user: int
) -> list[IntendedRequest]:
    # Each aspect has a stream of its own: another mix leaves the moments as they are.
    arrivals_rng, mix_rng, prompt_rng, answer_rng, tenant_rng, draw_rng = (
        np.random.default_rng([scenario.seed, crc32(traffic.name.encode()), aspect]) for aspect in range(6)
    )
    arrivals = traffic.arrivals
    if isinstance(arrivals, ClosedLoop):
        think = arrivals.think_times(arrivals_rng)
        at_s = np.zeros(len(think))
    else:
        at_s = arrivals.times(arrivals_rng)
        think = np.zeros(len(at_s))
    count = len(at_s)
    picks = traffic.adapters.mix.picks(names, at_s, mix_rng)
    prompts = traffic.prompt.length.sample(count, prompt_rng)
    answers = traffic.answer.length.sample(count, answer_rng)
    tenants = pick_tenants(traffic.tenants, count, tenant_rng) if traffic.tenants else [""] * count
    draws = draw_rng.random((count, 5))
    trace = arrivals.rows() if isinstance(arrivals, TraceArrivals) else [None] * count
    made = []
    for index in range(count):
        row = trace[index]
        adapter = names[picks[index]]
        if row is not None and row.adapter is not None:
            adapter = "" if row.adapter == BASE else row.adapter
        adapter = adapter.replace("{tenant}", tenants[index])
        prompt_tokens = row.input_len if row and row.input_len else int(prompts[index])
        own = (float(draws[index, 0]), float(draws[index, 1]), float(draws[index, 2]))
        usual = _usual(scenario.client, draws[index])
        is_closed = isinstance(arrivals, ClosedLoop)
        made.append(
            IntendedRequest(
                index=index,
                traffic=traffic.name,
                tenant=tenants[index] or _tenant_of(adapter),
                adapter=adapter,
                at_s=float(at_s[index]),
                user=first_user + index % arrivals.users if isinstance(arrivals, ClosedLoop) else -1,
                think_s=float(think[index]),
                prompt_tokens=prompt_tokens,
                max_tokens=row.output_len if row and row.output_len else int(answers[index]),
                prefix_tokens=round(prompt_tokens * traffic.prompt.shared_prefix),
                prompt_seed=(scenario.seed * 1_000_003 + crc32(traffic.name.encode()) + index) % 2**32,
                draws=own,
                behaviour=usual
                if is_closed
                else behaviour_at(usual, scenario.disturbances, float(at_s[index]), own),
            )
        )
    return made


def _usual(client: Client, draws: Any) -> Behaviour:
    return Behaviour(
        cancel_after_tokens=client.cancel_after_tokens if draws[3] < client.cancel_share else 0,
        read_pause_s=client.slow_pause_s if draws[4] < client.slow_share else 0.0,
        deadline_s=client.deadline_s,
    )


def _tenant_of(adapter: str) -> str:
    tenant, separator, _ = adapter.partition("/")
    return tenant if separator else DEFAULT_TENANT


def _renumbered(request: IntendedRequest, index: int) -> IntendedRequest:
    from dataclasses import replace

    return request if request.index == index else replace(request, index=index)
