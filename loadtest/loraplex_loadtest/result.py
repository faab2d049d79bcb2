"""The result document: everything that was found, as versioned JSON. All reports are made of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from loraplex_loadtest.errors import ResultInvalidError
from loraplex_loadtest.figures.fairness import fairness
from loraplex_loadtest.figures.groups import distributions, rates
from loraplex_loadtest.figures.health import GeneratorHealth, generator_health
from loraplex_loadtest.figures.percentiles import CURVE_POINTS
from loraplex_loadtest.figures.samples import Mask, Samples
from loraplex_loadtest.figures.timeline import heat_map, timeline
from loraplex_loadtest.run import Outcome
from loraplex_loadtest.scenario import BASE, Scenario

SCHEMA = "loraplex.loadtest/1"
_CURVES = ("ttft", "tpot", "itl", "e2e", "cold_ttft", "warm_ttft")
_MAX_ADAPTERS = 200


def samples_of(outcome: Outcome) -> Samples:
    """Columns with the window of the plan; of a run that was stopped, up to its last request."""
    start_s, end_s = outcome.plan.window_s
    if outcome.was_stopped and outcome.recording.records:
        end_s = min(end_s, max(record.intended_s for record in outcome.recording.records) + 1e-6)
    return Samples.of(outcome.recording, (start_s, max(end_s, start_s)))


def result_document(outcome: Outcome) -> dict[str, Any]:
    """What `--out` writes and `--json` prints. NaN become null."""
    samples = samples_of(outcome)
    health = generator_health(samples, outcome.recording.generators)
    scenario = outcome.plan.scenario
    everything: Mask = np.ones(len(samples.intended_s), dtype=np.bool_)
    found = distributions(samples, everything)
    document = {
        "schema": SCHEMA,
        "scenario": scenario_document(scenario),
        "environment": outcome.environment,
        "server": outcome.server,
        "is_valid": is_valid(health, outcome),
        "generator": health.as_json(),
        "prompt_lengths": _prompt_lengths(outcome),
        "miscounted_requests": sum(
            record.usage_tokens not in (-1, record.tokens) for record in outcome.recording.records
        ),
        "window_s": list(samples.window_s),
        "was_stopped": outcome.was_stopped,
        "rates": rates(samples, everything, scenario.objectives),
        "figures": {name: one.as_json() for name, one in found.items()},
        "curves": {
            "percent": list(CURVE_POINTS),
            **{name: list(found[name].curve) for name in _CURVES if found[name].count},
        },
        "fairness": fairness(samples),
        "tenants": _groups(outcome, samples, "tenant"),
        "adapters": _groups(outcome, samples, "adapter"),
        "traffic": _groups(outcome, samples, "traffic"),
        "timeline": timeline(samples),
        "heat_map": heat_map(samples),
        "disturbances": [one.as_json() for one in outcome.happened],
        "reconciliation": outcome.reconciliation.as_json() if outcome.reconciliation else None,
        "metrics": {
            "before": outcome.before.as_json() if outcome.before else None,
            "after": outcome.after.as_json() if outcome.after else None,
        },
    }
    cleaned: dict[str, Any] = _without_nan(document)
    return cleaned


def scenario_document(scenario: Scenario) -> dict[str, Any]:
    """The scenario without paths of this machine."""
    paths: Any = {"setup": {"package"}, "tokenizer": True, "disturbances": {"__all__": {"recipe", "package"}}}
    return scenario.model_dump(mode="json", exclude=paths)


def _prompt_lengths(outcome: Outcome) -> str:
    """Nominal: without a tokenizer. Inexact: with one that counts otherwise than the server does."""
    if not outcome.has_exact_prompts:
        return "nominal"
    return "inexact" if any(record.prompt_differs for record in outcome.recording.records) else "exact"


def is_valid(health: GeneratorHealth, outcome: Outcome) -> bool:
    """Whether the figures say something of the server."""
    return health.is_valid and bool(outcome.recording.records)


def read_result(file: Path) -> dict[str, Any]:
    """A document that `--out` wrote. Raises ResultInvalidError for anything else."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise ResultInvalidError(f"{file.name} is not JSON") from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise ResultInvalidError(f"{file.name} is no result of schema {SCHEMA}: it says {schema!r}")
    assert isinstance(document, dict)
    if "figures" not in document:
        raise ResultInvalidError(
            f"{file.name} is a result of `saturate`; those of `run --out` can be compared"
        )
    return document


def _groups(outcome: Outcome, samples: Samples, column: str) -> dict[str, Any]:
    """Rates and distributions by the values of a column, the busiest first."""
    values = getattr(samples, column)
    names, counts = np.unique(values[samples.is_measured], return_counts=True)
    busiest = names[np.argsort(-counts, kind="stable")][:_MAX_ADAPTERS]
    found = {}
    for name in busiest:
        group = values == name
        told = distributions(samples, group)
        found[str(name) or BASE] = {
            **rates(samples, group, outcome.plan.scenario.objectives),
            "figures": {figure: one.as_json() for figure, one in told.items() if one.count},
        }
    return found


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
