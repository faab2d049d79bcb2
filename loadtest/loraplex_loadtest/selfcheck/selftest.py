"""The instrument against servers whose latency is known: law, stall, saturation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np

from loraplex_loadtest.fake.law import LatencyLaw, LawState
from loraplex_loadtest.fake.process import fake_server
from loraplex_loadtest.figures.percentiles import nearest_rank
from loraplex_loadtest.result import samples_of
from loraplex_loadtest.run import Outcome, run_scenario
from loraplex_loadtest.saturation.saturate import saturate
from loraplex_loadtest.saturation.search import SearchSettings
from loraplex_loadtest.scenario import Scenario, make_scenario
from loraplex_loadtest.selfcheck.checks import Check, law_checks

LAW = LatencyLaw(first_token_s=0.4, per_prompt_token_s=0.002, per_token_s=0.02, adapter_load_s=0.5)
STALLING = LatencyLaw(first_token_s=0.1, per_token_s=0.01, stall_at_s=2.0, stall_s=2.0)
SATURATING = LatencyLaw(first_token_s=0.05, per_token_s=0.01, max_running=8)
_ANSWER_TOKENS = 16
_STALL_RATE = 50.0
_STALL_RUN_S = 6.0
_PERCENT = 90.0
CAPACITY = SATURATING.max_running / (SATURATING.first_token_s + SATURATING.per_token_s * (_ANSWER_TOKENS - 1))
"""Requests per second that the saturating server can sustain: places / seconds that each is held."""

OnStage = Callable[[str, int, int], None]
ATTEMPTS = 3
STAGES = ("latency law", "planted stall", "saturation")


async def selftest(on_stage: OnStage = lambda stage, done, total: None) -> tuple[list[Check], int]:
    """The checks, and how many stages had to be run again; about a minute.

    A stage that fails is run again: a machine that does other work delays messages, and what is asked is whether the
    instrument can be right, not whether the machine is quiet. An instrument that is wrong is wrong each time.
    """
    checks: list[Check] = []
    repeated = 0
    for number, (stage, run) in enumerate(zip(STAGES, (_law, _stall, _saturation), strict=True)):
        on_stage(stage, number, len(STAGES))
        for attempt in range(ATTEMPTS):
            found = await run()
            repeated += attempt > 0
            if all(check.is_right for check in found):
                break
        checks += found
    on_stage(STAGES[-1], len(STAGES), len(STAGES))
    return checks, repeated


def selftest_document(checks: list[Check], repeated: int) -> dict[str, Any]:
    """As JSON."""
    return {
        "is_right": all(check.is_right for check in checks),
        "stages_repeated": repeated,
        "checks": [check.as_json() for check in checks],
    }


async def _law() -> list[Check]:
    with fake_server(LAW) as fake:
        outcome = await run_scenario(_law_scenario(), fake.target())
    checks = law_checks(samples_of(outcome), LAW)
    asked = sum(request.max_tokens for request in outcome.plan.requests)
    counted = sum(record.tokens for record in outcome.recording.records)
    difference = outcome.reconciliation.difference if outcome.reconciliation else float("nan")
    return [
        *checks,
        Check("tokens received", asked, counted, "tokens", tolerance=0.0),
        Check("difference from the server's counters", 0.0, difference, "tokens", tolerance=0.0),
    ]


async def _stall() -> list[Check]:
    """An open loop sees the stall in its percentile; a closed loop on the same server hides it."""
    with fake_server(STALLING) as first, fake_server(STALLING) as second:
        is_open, is_closed = await asyncio.gather(
            run_scenario(_stall_scenario(True), first.target()),
            run_scenario(_stall_scenario(False), second.target()),
        )
    # What the law says of the very moments that the plan has.
    state = LawState(STALLING)
    admitted = [(one.at_s, state.admit(one.at_s, "", 1, 1)) for one in is_open.plan.requests]
    waits = [schedule.first_s - at_s for at_s, schedule in admitted if schedule is not None]
    expected = nearest_rank(np.sort(np.array(waits)), _PERCENT)
    return [
        Check("p90 of first tokens across a stall, open loop", expected, _ttft(is_open), "s"),
        Check(
            "the same in a closed loop, which hides it",
            STALLING.first_token_s,
            _ttft(is_closed),
            "s",
            tolerance=0.5,
        ),
    ]


async def _saturation() -> list[Check]:
    settings = SearchSettings(
        start_rate=CAPACITY * 0.9, growth=1.2, tolerance=0.01, attempts=2, trial_s=4.0, min_goodput=0.7
    )
    with fake_server(SATURATING) as fake:
        found = await saturate(_saturation_scenario(), fake.target(), settings)
    return [Check("sustained rate", CAPACITY, found.sustained_rate, "requests/s")]


def _ttft(outcome: Outcome) -> float:
    ttft_s = samples_of(outcome).ttft_s
    return nearest_rank(np.sort(ttft_s[~np.isnan(ttft_s)]), _PERCENT)


def _law_scenario() -> Scenario:
    return make_scenario(
        {
            "name": "selftest-law",
            "traffic": [
                {
                    "name": f"prompts-of-{tokens}",
                    "arrivals": {"kind": "poisson", "rate": 12, "duration_s": 6},
                    "adapters": {"mix": {"kind": "uniform"}},
                    "prompt": {"length": {"kind": "fixed", "tokens": tokens}},
                    "answer": {"length": {"kind": "fixed", "tokens": 40}},
                }
                for tokens in (50, 200, 350)
            ],
        }
    )


def _stall_scenario(is_open: bool) -> Scenario:
    arrivals = (
        {"kind": "constant", "rate": _STALL_RATE, "duration_s": _STALL_RUN_S}
        if is_open
        else {"kind": "closed", "users": 4, "duration_s": _STALL_RUN_S}
    )
    return make_scenario(
        {
            "name": "selftest-stall",
            "traffic": [
                {
                    "arrivals": arrivals,
                    "adapters": {"names": ["base"]},
                    "prompt": {"length": {"kind": "fixed", "tokens": 8}},
                    "answer": {"length": {"kind": "fixed", "tokens": 1}},
                }
            ],
        }
    )


def _saturation_scenario() -> Scenario:
    return make_scenario(
        {
            "name": "selftest-saturation",
            "objectives": {"ttft_s": SATURATING.first_token_s + 0.03},
            "traffic": [
                {
                    "arrivals": {"kind": "constant", "rate": 1, "duration_s": 1},
                    "adapters": {"names": ["base"]},
                    "prompt": {"length": {"kind": "fixed", "tokens": 8}},
                    "answer": {"length": {"kind": "fixed", "tokens": _ANSWER_TOKENS}},
                }
            ],
        }
    )
