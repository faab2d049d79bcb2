"""Conditions, comparison and reconciliation, on documents made by hand."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from loraplex_loadtest.comparison import compare, differences
from loraplex_loadtest.conditions import judge, parse_condition
from loraplex_loadtest.counters import Scrape, reconcile
from loraplex_loadtest.counters import scrape as take_scrape
from loraplex_loadtest.errors import ScenarioInvalidError
from loraplex_loadtest.figures.percentiles import PERCENTILES, has_enough, samples_for
from loraplex_loadtest.records import OK
from loraplex_loadtest.targets.target import TargetKind
from tests.unit.loadtest.builders import record


def figure(value: float, width: float = 0.01) -> dict[str, Any]:
    part = {"value": value, "low": value - width, "high": value + width}
    return {"n": 100, "mean": value, "min": value, "max": value, "p50": part, "p99": part}


def document(ttft: float = 0.4, error_rate: float = 0.0, tokens_per_s: float = 100.0) -> dict[str, Any]:
    rates = {
        "error_rate": error_rate,
        "tokens_per_s": tokens_per_s,
        "requests_per_s": 5.0,
        "goodput_share": 1.0,
    }
    return {
        "is_valid": True,
        "scenario": {"seed": 1, "traffic": [], "window": {}},
        "environment": {"processor": "a"},
        "rates": rates,
        "figures": {"ttft": figure(ttft), "tpot": {"n": 3, "mean": 0.1}},
        "tenants": {"shop": {"error_rate": 0.5, "figures": {"ttft": figure(9.0)}}},
        "adapters": {},
        "traffic": {},
        "fairness": {"jain_tenants": 0.8},
        "generator": {"send_lag_p99_s": 0.002, "cpu_share": 0.3},
        "reconciliation": {"difference": 0.0},
    }


@pytest.mark.parametrize(
    ("text", "fails"),
    [
        ("ttft_p99>500ms", False),
        ("ttft_p99>300ms", True),
        ("ttft_p99 >= 0.4", True),
        ("ttft_mean<1s", True),
        ("ttft_p99[tenant=shop]>5s", True),
        ("error_rate>0%", False),
        ("error_rate[tenant=shop]>49%", True),
        ("tokens_per_s<100", False),
        ("jain_tenants<0.9", True),
        ("send_lag_p99>10ms", False),
        ("counter_difference>0", False),
    ],
)
def test_a_condition_fails_the_run_if_it_holds(text: str, fails: bool) -> None:
    assert judge(parse_condition(text), document()).fails is fails


def test_too_few_samples_are_told_with_how_many_it_takes() -> None:
    text = judge(parse_condition("tpot_p99>1s"), document()).text()

    assert (
        "too few samples to tell, 3 of the 1000 that p99 needs: run longer, or ask for a lower percentile"
        in text
    )


@pytest.mark.parametrize("percent", PERCENTILES)
def test_the_number_of_samples_that_is_told_is_the_fewest_that_is_enough(percent: float) -> None:
    fewest = samples_for(percent)

    assert has_enough(fewest, percent)
    assert not has_enough(fewest - 1, percent)


@pytest.mark.parametrize("text", ["tpot_p99>1s", "ttft_p99[adapter=red]>1s"])
def test_a_figure_with_too_few_samples_fails_it_too(text: str) -> None:
    verdict = judge(parse_condition(text), document())

    assert verdict.fails
    assert "too few samples" in verdict.text()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ttft", "write FIGURE_PART>BOUND"),
        ("ttft_p99>fast", "write FIGURE_PART>BOUND"),
        ("ttft>1s", "did you mean ttft_p99"),
        ("speed_p99>1s", "there are ttft"),
        ("speed>1", "error_rate"),
        ("jain_tenants[tenant=a]<1", "of the whole run"),
    ],
)
def test_a_condition_that_cannot_be_read_says_what_is_possible(text: str, told: str) -> None:
    with pytest.raises(ScenarioInvalidError, match=told):
        parse_condition(text)


def test_what_is_worse_beyond_threshold_and_chance_is_a_regression() -> None:
    changes = {one.figure: one for one in compare(document(ttft=0.4), document(ttft=0.5))}

    assert changes["ttft_p50"].ratio == pytest.approx(1.25)
    assert changes["ttft_p50"].is_regression(0.05)
    assert not changes["ttft_p50"].is_regression(0.3)
    assert not changes["tokens_per_s"].is_regression(0.05)


def test_overlapping_intervals_and_what_got_better_are_none() -> None:
    by_chance, better = (
        {one.figure: one for one in compare(document(ttft=0.4), document(ttft=ttft))} for ttft in (0.415, 0.2)
    )

    assert by_chance["ttft_p50"].overlaps
    assert not by_chance["ttft_p50"].is_regression(0.01)
    assert not better["ttft_p50"].is_regression(0.01)


def test_fewer_tokens_and_new_errors_are_regressions() -> None:
    changes = {one.figure: one for one in compare(document(), document(error_rate=0.1, tokens_per_s=80))}

    assert changes["tokens_per_s"].is_regression(0.05)
    assert changes["error_rate"].is_regression(0.05)


def test_what_makes_two_runs_differ_is_told() -> None:
    other = document()
    other["scenario"] = {**other["scenario"], "seed": 2}
    other["is_valid"] = False

    assert differences(document(), document()) == []
    assert differences(document(), other) == [
        "the scenarios differ in seed",
        "the second run is invalid: its generator was the bottleneck",
    ]


def scrape(**tokens: float) -> Scrape:
    values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for adapter, count in tokens.items():
        values["loraplex_completion_tokens_total", (("adapter", adapter),)] = count
        values["loraplex_prompt_tokens_total", (("adapter", adapter),)] = count / 2
        values["loraplex_requests_total", (("adapter", adapter), ("finish", "length"))] = count / 4
    return Scrape(values)


def done(adapter: str, tokens: int, **fields: Any) -> Any:
    usual: dict[str, Any] = {"status": OK, "prompt_tokens": tokens // 2}
    return record(0, 0.0, adapter=adapter, tokens=tokens, **{**usual, **fields})


def test_equal_counts_leave_no_difference() -> None:
    found = reconcile(
        TargetKind.LORAPLEX, scrape(red=8), scrape(red=12, base=4), [done("red", 4), done("", 4)]
    )

    assert found is not None
    assert found.is_exact
    assert {(row.counter, row.adapter) for row in found.rows} == {
        (counter, adapter)
        for counter in ("completion_tokens", "prompt_tokens", "requests")
        for adapter in ("base", "red")
    }


def test_a_token_that_nobody_received_is_found() -> None:
    found = reconcile(TargetKind.LORAPLEX, scrape(red=0), scrape(red=8), [done("red", 4, prompt_tokens=4)])

    assert found is not None
    assert not found.is_exact
    assert not found.is_explained
    assert found.rows[0].difference == 4


def test_what_a_cut_stream_left_unread_explains_a_difference() -> None:
    cut = done("red", 2, status="CANCELLED_BY_PLAN")

    ahead = reconcile(TargetKind.LORAPLEX, scrape(red=0), scrape(red=4), [cut])
    behind = reconcile(TargetKind.LORAPLEX, scrape(red=0), scrape(red=1), [cut])

    assert ahead is not None
    assert behind is not None
    assert (ahead.is_exact, ahead.is_explained, ahead.cut_streams) == (False, True, 1)
    assert not behind.is_explained


def test_a_deleted_adapter_is_left_out_and_an_unlabelled_one_is_among_the_others() -> None:
    before, after = scrape(other=0, gone=4), scrape(other=4)

    found = reconcile(TargetKind.LORAPLEX, before, after, [done("gone", 9), done("far", 4)], deleted={"gone"})

    assert found is not None
    assert found.is_exact
    assert found.left_out == ("gone",)


def test_a_server_without_known_counters_is_not_reconciled() -> None:
    assert reconcile(TargetKind.OPENAI, Scrape({}), Scrape({}), [done("red", 4)]) is None


def test_a_percentile_that_no_result_holds_is_refused_before_the_run() -> None:
    with pytest.raises(
        ScenarioInvalidError, match=r"no percentile p75; there are p50, p90, p95, p99, p99\.9"
    ):
        parse_condition("ttft_p75>1s")
    assert parse_condition("ttft_p99.9>1s").part == "p99.9"


def test_errors_that_were_none_before_are_json() -> None:
    changes = compare(document(error_rate=0.0), document(error_rate=0.1))

    (found,) = (one.as_json(0.05) for one in changes if one.figure == "error_rate")
    assert json.loads(json.dumps(found, allow_nan=False))["is_regression"]


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>\n{not metrics\n</html>" if self.path == "/html" else b"\xff\xfe")

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.mark.parametrize("path", ["/html", "/bytes"])
async def test_a_page_that_is_no_metrics_counts_nothing(path: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = await take_scrape(f"http://127.0.0.1:{server.server_address[1]}{path}")
        server.shutdown()

    assert found is None
