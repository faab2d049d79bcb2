"""How evenly service was given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from loraplex_loadtest.figures.samples import Samples, Texts


def jain_index(shares: Mapping[str, float]) -> float:
    """(Σx)² / (n·Σx²): 1 if all are equal, 1/n if one has everything. NaN of nothing."""
    values = np.array(list(shares.values()), dtype=np.float64)
    squares = float((values**2).sum())
    return float(values.sum() ** 2 / (len(values) * squares)) if squares else float("nan")


def satisfied_shares(samples: Samples, groups: Texts) -> dict[str, float]:
    """Group -> tokens that its measured requests got, of those that they asked for, in [0, 1]."""
    measured = samples.is_measured & ~samples.was_cut_by_plan
    found = {}
    for name in np.unique(groups[measured]):
        chosen = measured & (groups == name)
        asked = float(samples.max_tokens[chosen].sum())
        found[str(name)] = float(samples.tokens[chosen].sum()) / asked if asked else 0.0
    return found


def fairness(samples: Samples) -> dict[str, Any]:
    """Jain's index of what tenants and adapters got of what they asked for, and of the speed that tenants saw."""
    tenants = satisfied_shares(samples, samples.tenant)
    speeds = _token_speeds(samples)
    return {
        "jain_tenants": jain_index(tenants),
        "jain_adapters": jain_index(satisfied_shares(samples, samples.adapter)),
        "jain_tenant_speed": jain_index(speeds),
        "tenant_shares": tenants,
        "tenant_tokens_per_request_second": speeds,
        "max_min_speed": max(speeds.values()) / min(speeds.values())
        if speeds and min(speeds.values()) > 0
        else float("nan"),
    }


def _token_speeds(samples: Samples) -> dict[str, float]:
    """Tenant -> tokens per second that its requests spent, waiting included: what it felt, whatever it asked for."""
    measured = samples.is_measured & samples.is_ok
    found = {}
    for name in np.unique(samples.tenant[measured]):
        chosen = measured & (samples.tenant == name)
        seconds = float(np.nansum(samples.e2e_s[chosen]))
        found[str(name)] = float(samples.tokens[chosen].sum()) / seconds if seconds else 0.0
    return found
