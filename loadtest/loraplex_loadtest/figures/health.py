"""Whether the generator itself was the bottleneck; then the run says nothing of the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loraplex_loadtest.figures.percentiles import nearest_rank
from loraplex_loadtest.figures.samples import Samples
from loraplex_loadtest.records import GeneratorLoad

MAX_LAG_P99_S = 0.010
MAX_CPU_SHARE = 0.85


@dataclass(frozen=True, slots=True)
class GeneratorHealth:
    """How well the plan was kept. All requests count, warm-up included."""

    lag_p99_s: float
    lag_max_s: float
    cpu_share: float  # of one core, of the busiest process
    messages_per_s: float
    peak_streams: int

    @property
    def complaints(self) -> tuple[str, ...]:
        """Why the run is invalid; empty: it is valid."""
        found = []
        if self.lag_p99_s > MAX_LAG_P99_S:
            found.append(
                f"1 % of the requests were sent more than {self.lag_p99_s * 1000:.1f} ms late "
                f"({MAX_LAG_P99_S * 1000:g} ms are allowed)"
            )
        if self.cpu_share > MAX_CPU_SHARE:
            found.append(
                f"a generator process was busy for {self.cpu_share:.0%} of the time ({MAX_CPU_SHARE:.0%} are allowed)"
            )
        return tuple(found)

    @property
    def is_valid(self) -> bool:
        return not self.complaints

    def as_json(self) -> dict[str, Any]:
        return {
            "is_valid": self.is_valid,
            "complaints": list(self.complaints),
            "send_lag_p99_s": self.lag_p99_s,
            "send_lag_max_s": self.lag_max_s,
            "cpu_share": self.cpu_share,
            "messages_per_s": self.messages_per_s,
            "peak_streams": self.peak_streams,
        }


def generator_health(samples: Samples, loads: Sequence[GeneratorLoad]) -> GeneratorHealth:
    """Lag of every request; CPU and messages of every process."""
    lags = np.sort(samples.client_queue_s)
    return GeneratorHealth(
        lag_p99_s=nearest_rank(lags, 99) if len(lags) else 0.0,
        lag_max_s=float(lags[-1]) if len(lags) else 0.0,
        cpu_share=max((load.cpu_share for load in loads), default=0.0),
        messages_per_s=sum(load.messages / max(load.seconds, 1e-9) for load in loads),
        peak_streams=sum(load.peak_streams for load in loads),
    )
