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
    met, missed = tmp_path / "apart.json", tmp_path / "together.json"
    met.write_text(json.dumps({"start": "apart", "min_prefill_rows": 64, "ratio": 0.9}))
    missed.write_text(json.dumps({"start": "together", "min_prefill_rows": 8, "ratio": 0.89}))
    monkeypatch.setattr("sys.argv", ["goals", "--json", "--stream", str(met), str(missed)])

    goals.main()

    rows = [row for row in json.loads(capsys.readouterr().out) if row["what"].startswith("1,000 adapters")]
    assert [(row["what"].split(", ")[1:], row["verdict"]) for row in rows] == [
        (["begun apart", ">= 64 rows"], "met"),
        (["begun together", ">= 8 rows"], "missed"),
    ]
