"""Everything that a run leaves behind, read again by what others would read it with."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader
from rich.console import Console

from loraplex_loadtest.comparison import compare
from loraplex_loadtest.conditions import judge, parse_condition
from loraplex_loadtest.counters import Scrape
from loraplex_loadtest.disturbances.actions import Happening
from loraplex_loadtest.disturbances.variants import write_variant
from loraplex_loadtest.errors import ResultInvalidError, ScenarioInvalidError, TargetUnreadyError
from loraplex_loadtest.reports.files import write_hdr_log, write_requests
from loraplex_loadtest.reports.html import comparison_page, run_page, saturation_page
from loraplex_loadtest.reports.junit import junit_xml
from loraplex_loadtest.reports.live import LiveView, sparkline
from loraplex_loadtest.reports.push import push_figures
from loraplex_loadtest.reports.text import comparison_text, result_text, seconds_text
from loraplex_loadtest.result import SCHEMA, read_result, result_document, samples_of
from loraplex_loadtest.run import Outcome
from loraplex_loadtest.running.order import Snapshot
from loraplex_loadtest.workload.plan import make_plan
from tests.unit.loadtest.builders import record, recording, scenario

MESSAGES = {index: [(index + 0.25, 1), (index + 0.5, 2)] for index in range(40)}


@pytest.fixture
def outcome() -> Outcome:
    made = scenario(
        {
            "arrivals": {"kind": "constant", "rate": 1, "duration_s": 40},
            "adapters": {"names": ["red", "blue"]},
        },
        description="Made <by hand>",
    )
    records = [record(index, float(index), adapter=("red", "blue")[index % 2]) for index in range(40)]
    return Outcome(
        plan=make_plan(made, {"all": ["red", "blue"]}),
        recording=recording(
            MESSAGES, *records, record(40, 39.5, status="UNAVAILABLE", reason="ENGINE_RESTARTED")
        ),
        happened=(Happening("kill_engine", 20.0, 20.1, 20.2, "process 1", False),),
        server={"version": "fake"},
        before=Scrape({("x_total", ()): 1.0}),
        after=Scrape({("x_total", ()): 2.0}),
        reconciliation=None,
        has_exact_prompts=False,
        was_stopped=False,
    )


@pytest.fixture
def document(outcome: Outcome) -> dict[str, Any]:
    return result_document(outcome)


def test_the_document_is_json_without_paths_and_comes_back(document: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps(document, allow_nan=False))

    found = read_result(file)

    assert found == document
    assert found["schema"] == SCHEMA
    assert found["metrics"] == {"before": {"x_total": 1.0}, "after": {"x_total": 2.0}}
    assert "package" not in found["scenario"]["setup"]
    assert found["environment"]["python"]


@pytest.mark.parametrize("text", ["", "[]", '{"schema": "loraplex.loadtest/0"}'])
def test_what_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)

    with pytest.raises(ResultInvalidError, match=r"x\.json"):
        read_result(tmp_path / "x.json")


def test_the_text_says_what_happened(document: dict[str, Any]) -> None:
    told = result_text(document)

    assert "41 requests in 40 s, 40 ended well" in told
    assert "UNAVAILABLE 1" in told
    assert "at 20.1 s: kill_engine process 1" in told
    assert "prompt lengths are nominal" in told
    assert "250 ms [250–250]" in told


def test_an_invalid_run_says_so_everywhere(document: dict[str, Any]) -> None:
    document["is_valid"] = False
    document["generator"]["complaints"] = ["it was late"]

    assert "INVALID: it was late" in result_text(document)
    assert "INVALID: it was late" in run_page(document)
    assert 'message="it was late"' in junit_xml(document, [])


def test_the_page_stands_alone(document: dict[str, Any]) -> None:
    page = run_page(document, [judge(parse_condition("ttft_p50>1s"), document)])

    assert page.count("<svg") == 4
    assert "Made &lt;by hand&gt;" in page
    assert "kill_engine" in page
    assert not any(word in page for word in ("<script", "<link", "src=", "@import"))


def test_two_results_are_drawn_over_each_other(document: dict[str, Any]) -> None:
    changes = compare(document, document)

    page = comparison_page({"a": document, "b": document}, changes, 0.05, ["the scenarios differ"])

    assert page.count("<svg") == 3
    assert "time to first token, b" in page
    assert "the scenarios differ" in page
    assert "1.000" in comparison_text(changes, 0.05, [])


def test_a_saturation_search_is_drawn(document: dict[str, Any]) -> None:
    trial = {
        "rate": 2.0,
        "goodput_share": 1.0,
        "tokens_per_s": 9.0,
        "ttft_p50_s": 0.1,
        "ttft_p90_s": None,
        "is_good": True,
        "was_stopped": False,
    }
    page = saturation_page({**document, "trials": [trial, {**trial, "rate": 4.0}], "sustained_rate": 2.0})

    assert page.count("<svg") == 1
    assert "2 requests/s" in page


@pytest.mark.parametrize("name", ["requests.csv", "requests.jsonl"])
def test_every_request_is_written(outcome: Outcome, tmp_path: Path, name: str) -> None:
    write_requests(outcome, tmp_path / name)

    text = (tmp_path / name).read_text()
    rows: list[Any] = (
        list(csv.DictReader(text.splitlines()))
        if name.endswith("csv")
        else [json.loads(line) for line in text.splitlines()]
    )
    assert len(rows) == 41
    assert float(rows[3]["first_s"]) == 3.25
    assert rows[40]["reason"] == "ENGINE_RESTARTED"


def test_latencies_come_back_from_the_histogram_log(outcome: Outcome, tmp_path: Path) -> None:
    write_hdr_log(samples_of(outcome), tmp_path / "latencies.hlog")

    reader = HistogramLogReader(str(tmp_path / "latencies.hlog"), HdrHistogram(1, 3_600_000_000, 3))
    found = {}
    while (histogram := reader.get_next_interval_histogram()) is not None:
        found[histogram.get_tag()] = histogram
    assert sorted(found) == ["e2e", "itl", "tpot", "ttft"]
    assert found["ttft"].get_total_count() == 40
    assert found["ttft"].get_value_at_percentile(50) == pytest.approx(250_000, rel=0.002)
    assert found["itl"].get_value_at_percentile(50) == pytest.approx(125_000, rel=0.002)


def test_build_servers_read_the_conditions(document: dict[str, Any]) -> None:
    verdicts = [judge(parse_condition(text), document) for text in ("ttft_p50>1ms", "error_rate>50%")]

    suite = ElementTree.fromstring(junit_xml(document, verdicts))

    failed = [case.get("name") for case in suite if case.find("failure") is not None]
    assert failed == ["not ttft_p50>1ms"]
    assert suite.get("failures") == "1"


def test_a_gateway_that_is_not_there_is_told(document: dict[str, Any]) -> None:
    with pytest.raises(TargetUnreadyError, match="push gateway"):
        push_figures(document, "http://127.0.0.1:1")


def test_a_sparkline_is_as_high_as_its_largest() -> None:
    assert sparkline([0, 4, 8]) == "▁▄█"
    assert sparkline([float("nan"), 1]) == " █"
    assert sparkline([0, 0]) == "▁▁"
    assert len(sparkline(range(100), width=10)) == 10


def test_the_live_view_shows_rates_adapters_and_disturbances(outcome: Outcome) -> None:
    console = Console(width=100, force_terminal=False, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    view = LiveView(console)
    view.on_start(outcome.plan)
    snapshots = [
        Snapshot(
            1.0,
            started=12,
            ended=7,
            errors=1,
            tokens=90,
            in_flight=5,
            ttft_s=(0.2,),
            adapters={"red": 6, "": 1},
        )
    ]

    view.on_progress(snapshots, outcome.happened)
    console.print(view.view(snapshots, outcome.happened))

    shown = console.export_text()
    for told in ("requests/s", "in flight", "red", "base", "kill_engine", "7 ended, 1 failed", "200 ms"):
        assert told in shown


@pytest.mark.parametrize(
    ("value", "text"), [(2.0, "2 s"), (0.25, "250 ms"), (0.0005, "500 us")], ids=["s", "ms", "us"]
)
def test_times_are_told_in_the_unit_that_reads_best(value: float, text: str) -> None:
    assert seconds_text(value) == text


def test_a_folder_that_is_no_package_makes_no_variant(tmp_path: Path) -> None:
    with pytest.raises(ScenarioInvalidError, match="no PEFT package"):
        write_variant(tmp_path, tmp_path / "out", 0)


def test_a_tokenizer_that_counts_otherwise_than_the_server_is_told(outcome: Outcome) -> None:
    exact = replace(outcome, has_exact_prompts=True)
    assert result_document(exact)["prompt_lengths"] == "exact"

    exact.recording.records[3].prompt_differs = True
    told = result_document(exact)
    assert told["prompt_lengths"] == "inexact"
    assert "not the plan's" in result_text(told)


def test_pieces_of_text_that_are_more_than_a_token_are_told(outcome: Outcome) -> None:
    outcome.recording.records[3].usage_tokens += 2

    told = result_document(outcome)
    assert told["miscounted_requests"] == 1
    assert "in 1 requests the server counted other tokens" in result_text(told)


def test_a_search_is_no_result_to_compare(tmp_path: Path) -> None:
    file = tmp_path / "search.json"
    file.write_text(json.dumps({"schema": SCHEMA, "kind": "saturation"}))

    with pytest.raises(ResultInvalidError, match="saturate"):
        read_result(file)
