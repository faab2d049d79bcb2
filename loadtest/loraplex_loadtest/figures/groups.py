"""The figures of a group of requests: all of them, a tenant's, an adapter's."""

from __future__ import annotations

from typing import Any

import numpy as np

from loraplex_loadtest.figures.percentiles import Distribution
from loraplex_loadtest.figures.samples import Mask, Samples
from loraplex_loadtest.scenario import Objectives

DISTRIBUTIONS = {
    "ttft": "time to first token, from the intended send",
    "service_ttft": "time to first token, from the actual send",
    "cold_ttft": "time to first token of requests that waited for their adapter",
    "warm_ttft": "time to first token of the others",
    "tpot": "time per output token after the first",
    "itl": "inter-token latency, per token",
    "e2e": "end to end, from the intended send to the last token",
    "ntpot": "end to end per token",
    "client_queue": "intended to actual send",
    "server_queue": "as the server says: arrival to first step",
    "adapter_load": "as the server says: waiting for the adapter, of requests that did",
}
"""Figure -> meaning. All in seconds."""


def distributions(samples: Samples, group: Mask) -> dict[str, Distribution]:
    """Of the measured requests of a group."""
    chosen = samples.is_measured & group
    cold = chosen & samples.is_cold
    warm = chosen & ~samples.is_cold
    ttft = samples.ttft_s
    return {
        "ttft": Distribution.of(ttft[chosen]),
        "service_ttft": Distribution.of(samples.service_ttft_s[chosen]),
        "cold_ttft": Distribution.of(ttft[cold]),
        "warm_ttft": Distribution.of(ttft[warm]),
        "tpot": Distribution.of(samples.tpot_s[chosen]),
        "itl": Distribution.of(samples.inter_token_s(chosen)),
        "e2e": Distribution.of(samples.e2e_s[chosen]),
        "ntpot": Distribution.of(samples.ntpot_s[chosen]),
        "client_queue": Distribution.of(samples.client_queue_s[chosen]),
        "server_queue": Distribution.of(samples.queue_s[chosen]),
        "adapter_load": Distribution.of(samples.adapter_load_s[cold]),
    }


def is_good(samples: Samples, objectives: Objectives) -> Mask:
    """Requests that ended well within every objective."""
    good = samples.is_ok.copy()
    with np.errstate(invalid="ignore"):
        if objectives.ttft_s is not None:
            good &= samples.ttft_s <= objectives.ttft_s
        if objectives.tpot_s is not None:
            good &= np.isnan(samples.tpot_s) | (samples.tpot_s <= objectives.tpot_s)
        if objectives.e2e_s is not None:
            good &= samples.e2e_s <= objectives.e2e_s
    return good


def rates(samples: Samples, group: Mask, objectives: Objectives) -> dict[str, Any]:
    """Counts and rates of a group. A request that gave up because it was told to is neither good nor an error."""
    chosen = samples.is_measured & group
    judged = chosen & ~samples.was_cut_by_plan
    num_judged = int(judged.sum())
    num_ok = int((chosen & samples.is_ok).sum())
    num_good = int((judged & is_good(samples, objectives)).sum())
    statuses, counts = np.unique(samples.status[chosen], return_counts=True)
    num_attempts = int(samples.attempts[chosen].sum())
    seconds = max(samples.seconds, 1e-9)
    return {
        "requests": int(chosen.sum()),
        "attempts": num_attempts,
        "attempts_per_request": num_attempts / int(chosen.sum()) if chosen.any() else 1.0,
        "ok": num_ok,
        "statuses": {str(name): int(count) for name, count in zip(statuses, counts, strict=True)},
        "error_rate": (num_judged - num_ok) / num_judged if num_judged else 0.0,
        "offered_per_s": int(chosen.sum()) / seconds,
        "requests_per_s": num_ok / seconds,
        "goodput_per_s": num_good / seconds,
        "goodput_share": num_good / num_judged if num_judged else 0.0,
        "tokens": int(samples.tokens[chosen].sum()),
        "prompt_tokens": int(samples.prompt_tokens[chosen & samples.is_ok].sum()),
        "tokens_per_s": samples.tokens_in_window(group) / seconds,
    }
