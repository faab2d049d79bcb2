"""`python -m benchmarks.goals` has a row for every goal that was measured, on CPUs too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import goals


def test_a_storm_on_a_cpu_stands_beside_its_goal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calm, rough = tmp_path / "new-2-cores-churn.json", tmp_path / "old-2-cores-churn.json"
    calm.write_text(json.dumps({"itl_p99_ratio": 1.15, "goal": 1.15}))
    rough.write_text(json.dumps({"itl_p99_ratio": 1.16, "goal": 1.15}))
    monkeypatch.setattr("sys.argv", ["goals", "--json", "--cpu-churn", str(calm), str(rough)])

    goals.main()

    rows = json.loads(capsys.readouterr().out)[-2:]
    assert [(row["what"].split(",")[1].strip(), row["verdict"]) for row in rows] == [
        ("new-2-cores", "met"),
        ("old-2-cores", "missed"),
    ]


def test_each_stream_of_many_adapters_stands_beside_the_goal_with_how_it_was_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both, one = tmp_path / "both.json", tmp_path / "one.json"
    starts = [{"start": "apart", "ratio": 0.9}, {"start": "together", "ratio": 0.89}]
    both.write_text(json.dumps({"min_prefill_rows": 64, "streams": starts}))
    one.write_text(json.dumps({"min_prefill_rows": 8, "streams": [{"start": "together", "ratio": 0.91}]}))
    monkeypatch.setattr("sys.argv", ["goals", "--json", "--stream", str(both), str(one)])

    goals.main()

    assert stream_verdicts(capsys) == [
        ("begun apart, >= 64 rows", "met"),
        ("begun together, >= 64 rows", "missed"),
        ("begun together, >= 8 rows", "met"),
    ]


def test_a_report_that_is_not_there_or_empty_leaves_a_row_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (
        ("empty", ""),
        ("unfinished", "{}"),
        ("bare", '{"min_prefill_rows": 8, "streams": []}'),
    ):
        (tmp_path / name).write_text(content)
    paths = [str(tmp_path / name) for name in ("missing", "empty", "unfinished", "bare")]
    monkeypatch.setattr("sys.argv", ["goals", "--json", "--stream", *paths])

    goals.main()

    assert stream_verdicts(capsys) == [
        (name, "not measured") for name in ("missing", "empty", "unfinished", "bare")
    ]


def stream_verdicts(capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str]]:
    """How each was run, and what came of it."""
    rows = [row for row in json.loads(capsys.readouterr().out) if row["what"].startswith("1,000 adapters")]
    return [(row["what"].partition(", ")[2], row["verdict"]) for row in rows]


def test_first_tokens_of_a_server_stand_beside_their_goals_in_the_storm_as_well() -> None:
    visit = {"prompt_tokens": 38, "cold_first_token_ms": 56.63, "cold_first_token_goal_ms": 56.4}
    storm = {"adapters": 50, "itl_p99_ratio": 1.045, "first_tokens": [visit]}

    rows = {row.what: row.verdict for row in goals.server_rows({}, storm)}

    assert rows == {
        "a server, p99 between tokens: many coming / quiet": "not measured",
        "a server, many coming: first token": "not measured",
        "a server, p99 between tokens: 50 coming / quiet": "met",
        "a server, 50 coming: first token, prompt 38": "missed",
    }


def test_every_committed_report_has_rows_that_fit_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["goals", "--json"])

    goals.main()

    rows = json.loads(capsys.readouterr().out)
    assert [row["what"] for row in rows if len(row["what"]) > 48] == []
    assert [row["what"] for row in rows if row["verdict"] == "not measured"] == []
