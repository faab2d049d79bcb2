"""The server's own counters before and after a run, and what is left when the requests are taken off."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from loraplex_loadtest.records import OK, RequestRecord
from loraplex_loadtest.scenario import BASE
from loraplex_loadtest.targets.target import TargetKind

_TIMEOUT_S = 5.0
_SETTLE_S = 10.0
_SETTLE_POLL_S = 0.1
_OTHER = "other"


@dataclass(frozen=True, slots=True)
class Scrape:
    """All samples of one look at the metrics endpoint."""

    values: Mapping[tuple[str, tuple[tuple[str, str], ...]], float]

    def by(self, name: str, label: str = "") -> dict[str, float]:
        """Sums of a metric's samples by the value of a label; everything under "" without one."""
        found: dict[str, float] = {}
        for (sample, labels), value in self.values.items():
            if sample == name:
                key = dict(labels).get(label, "")
                found[key] = found.get(key, 0.0) + value
        return found

    def total(self, name: str) -> float:
        return sum(self.by(name).values())

    def as_json(self) -> dict[str, float]:
        """`name{label="value"}` -> value; without the buckets, which are many."""
        return {
            name + ("{" + ",".join(f'{key}="{text}"' for key, text in labels) + "}" if labels else ""): value
            for (name, labels), value in sorted(self.values.items())
            if not name.endswith(("_bucket", "_created"))
        }


async def scrape(url: str) -> Scrape | None:
    """None where there is no endpoint, or it does not answer."""
    return await asyncio.to_thread(_scrape, url) if url else None


async def settled_scrape(kind: TargetKind, url: str, before: Scrape, ended: int) -> Scrape | None:
    """A scrape once the server has counted `ended` further requests, or some seconds later."""
    name = _NAMES[kind]["requests"]
    for _ in range(int(_SETTLE_S / _SETTLE_POLL_S)):
        found = await scrape(url)
        is_counted = kind is TargetKind.LORAPLEX or bool(before.by(name))
        if found is None or not is_counted or found.total(name) >= before.total(name) + ended:
            return found
        await asyncio.sleep(_SETTLE_POLL_S)
    return await scrape(url)


def _scrape(url: str) -> Scrape | None:
    from prometheus_client.parser import text_string_to_metric_families

    if not url.startswith(("http://", "https://")):
        return None
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
            text = response.read().decode()
        return Scrape(
            {
                (sample.name, tuple(sorted(sample.labels.items()))): float(sample.value)
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
        )
    except (
        OSError,
        HTTPException,
        ValueError,
        LookupError,
    ):  # nobody there, or somebody who speaks of other things
        return None


_NAMES: Mapping[TargetKind, Mapping[str, str]] = {
    TargetKind.LORAPLEX: {
        "completion_tokens": "loraplex_completion_tokens_total",
        "prompt_tokens": "loraplex_prompt_tokens_total",
        "requests": "loraplex_requests_total",
    },
    TargetKind.VLLM: {
        "completion_tokens": "vllm:generation_tokens_total",
        "prompt_tokens": "vllm:prompt_tokens_total",
        "requests": "vllm:request_success_total",
    },
    TargetKind.OPENAI: {
        "completion_tokens": "vllm:generation_tokens_total",
        "prompt_tokens": "vllm:prompt_tokens_total",
        "requests": "vllm:request_success_total",
    },
}
"""What an OpenAI-compatible server calls its counters, if it is vLLM; others are not reconciled."""


@dataclass(frozen=True, slots=True)
class Row:
    """A counter's growth beside our own sum."""

    counter: str  # completion_tokens, prompt_tokens or requests
    adapter: str  # "base", "other", a name; empty: all
    server: float
    client: float

    @property
    def difference(self) -> float:
        return self.server - self.client


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """Whether server and client counted the same."""

    rows: tuple[Row, ...]
    cut_streams: int  # ended early: the server may have made tokens that never arrived
    left_out: tuple[str, ...]  # adapters deleted during the run, whose series went away with them

    @property
    def difference(self) -> float:
        """Of tokens and ended requests, summed over adapters without sign."""
        return sum(abs(row.difference) for row in self.rows)

    @property
    def is_exact(self) -> bool:
        return self.difference == 0

    @property
    def is_explained(self) -> bool:
        """Exact, or the server is ahead by what streams that were cut left unread."""
        return self.is_exact or (self.cut_streams > 0 and all(row.difference >= 0 for row in self.rows))

    def as_json(self) -> dict[str, Any]:
        return {
            "is_exact": self.is_exact,
            "is_explained": self.is_explained,
            "difference": self.difference,
            "cut_streams": self.cut_streams,
            "left_out": list(self.left_out),
            "rows": [
                {
                    "counter": row.counter,
                    "adapter": row.adapter,
                    "server": row.server,
                    "client": row.client,
                    "difference": row.difference,
                }
                for row in self.rows
            ],
        }


def reconcile(
    kind: TargetKind,
    before: Scrape,
    after: Scrape,
    records: Sequence[RequestRecord],
    deleted: Collection[str] = (),
) -> Reconciliation | None:
    """None where the server has no counters that are known.

    Every record is taken, whatever the measured window. A request that was refused before it started has no tokens on
    either side. Of requests only those are compared that ended well: whether a cut one was counted as started is
    known to the server alone.
    """
    names = _NAMES[kind]
    if not after.by(names["completion_tokens"]) and not before.by(names["completion_tokens"]):
        return None
    label = "adapter" if kind is TargetKind.LORAPLEX else ""
    ours: dict[str, dict[str, float]] = {"completion_tokens": {}, "prompt_tokens": {}, "requests": {}}
    known = set(after.by(names["completion_tokens"], label))
    cut = 0
    for record in records:
        if record.adapter in deleted:
            continue
        cut += record.was_cut
        key = _label_of(record.adapter, known) if label else ""
        _add(ours["completion_tokens"], key, record.tokens)
        if record.status == OK:
            _add(ours["prompt_tokens"], key, record.prompt_tokens)
            _add(ours["requests"], key, 1)
    rows = []
    for counter, mine in ours.items():
        if counter != "completion_tokens" and cut:
            continue
        grown = _growth(before, after, names[counter], label)
        keys = sorted(mine.keys() | {key for key, value in grown.items() if value} - set(deleted))
        rows += [Row(counter, key, grown.get(key, 0.0), mine.get(key, 0.0)) for key in keys]
    return Reconciliation(tuple(rows), cut, tuple(sorted(deleted)))


def _label_of(adapter: str, known: Collection[str]) -> str:
    name = adapter.partition("@")[0] or BASE
    return name if name in known else _OTHER if _OTHER in known else name


def _growth(before: Scrape, after: Scrape, name: str, label: str) -> dict[str, float]:
    first = before.by(name, label)
    return {key: value - first.get(key, 0.0) for key, value in after.by(name, label).items()}


def _add(sums: dict[str, float], key: str, value: float) -> None:
    sums[key] = sums.get(key, 0.0) + value
