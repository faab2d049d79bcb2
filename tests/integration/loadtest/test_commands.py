"""`loraplex loadtest` against the fake server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.main import app
from loraplex_loadtest.fake.process import FakeAddresses

QUICK = ("--duration", "0.5", "--rate", "20", "--answer-tokens", "3", "--allow-invalid", "--no-live")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["loadtest", *arguments])


def document(result: Result) -> Any:
    (line,) = result.stdout.splitlines()
    return json.loads(line)


def at(fake: FakeAddresses) -> tuple[str, ...]:
    target = fake.target()
    return "--server", target.address, "--metrics-url", target.metrics_url


def test_a_run_writes_everything_that_it_is_asked_for(fake: FakeAddresses, tmp_path: Path) -> None:
    names = {
        "--out": "a.json",
        "--html": "a.html",
        "--requests": "a.csv",
        "--hdr": "a.hlog",
        "--junit": "a.xml",
    }
    files = [text for flag, name in names.items() for text in (flag, str(tmp_path / name))]

    result = run("run", "smoke", *at(fake), *QUICK, *files, "--json")

    assert result.exit_code == ExitCode.OK, result.output
    found = document(result)
    assert found["conditions"] == [{"condition": "error_rate>0%", "value": 0.0, "fails": False}]
    assert found["server"]["version"] == "fake"
    assert json.loads((tmp_path / "a.json").read_text()) == found
    assert all((tmp_path / name).stat().st_size for name in names.values())


def test_a_condition_that_holds_ends_with_5(fake: FakeAddresses) -> None:
    result = run("run", "smoke", *at(fake), *QUICK, "--fail-if", "ttft_mean>1ms", "--json")

    assert result.exit_code == ExitCode.WRONG_RESULT
    assert [one["fails"] for one in document(result)["conditions"]] == [False, True]


def test_an_adapter_that_is_not_there_ends_the_run_before_it_begins(fake: FakeAddresses) -> None:
    result = run("run", "smoke", *at(fake), *QUICK, "--adapters", "fake-00@stable,nosuch,base", "--json")

    assert result.exit_code == ExitCode.BAD_INPUT
    error = document(result)["error"]
    assert error["reason"] == "SCENARIO_INVALID"
    assert error["message"].startswith("the server has no adapter 'nosuch'; it has fake-00, fake-01")


def test_a_run_prints_tables(fake: FakeAddresses) -> None:
    result = run("run", "smoke", *at(fake), *QUICK)

    assert result.exit_code == ExitCode.OK, result.output
    assert "difference 0" in result.stdout
    assert "ttft" in result.stdout


def test_a_dry_run_sends_nothing_and_prints_the_plan(fake: FakeAddresses) -> None:
    found = document(run("run", "steady-zipf", *at(fake), "--duration", "5", "--dry-run", "--json"))

    assert found["duration_s"] == 5
    assert {"at_s", "adapter", "prompt_tokens", "max_tokens"} <= found["requests"][0].keys()


def test_two_results_are_compared(fake: FakeAddresses, tmp_path: Path) -> None:
    for name, tokens in (("a", "3"), ("b", "40")):
        run(
            "run",
            "smoke",
            *at(fake),
            *QUICK,
            "--answer-tokens",
            tokens,
            "--out",
            str(tmp_path / f"{name}.json"),
        )

    same = run("compare", str(tmp_path / "a.json"), str(tmp_path / "a.json"), "--json")
    worse = run(
        "compare", str(tmp_path / "b.json"), str(tmp_path / "a.json"), "--html", str(tmp_path / "c.html")
    )

    assert same.exit_code == ExitCode.OK
    assert not document(same)["is_worse"]
    assert worse.exit_code == ExitCode.WRONG_RESULT
    assert "tokens_per_s" in worse.stderr
    assert (tmp_path / "c.html").read_text().count("<svg") == 3


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("run", "no-such-scenario"), "SCENARIO_INVALID"),
        (("run", "smoke", "--fail-if", "speed>1"), "SCENARIO_INVALID"),
        (("run", "smoke", "--set", "client.threads=2"), "SCENARIO_INVALID"),
        (("run", "smoke", "--set", "client.processes"), "BAD_USAGE"),
        (("run", "smoke", "--rate", "1", "--users", "1"), "BAD_USAGE"),
        (("run", "smoke", "--set", "name.x.y=2"), "SCENARIO_INVALID"),
        (("run", "smoke", "--fail-if", "ttft_p75>1s"), "SCENARIO_INVALID"),
        (("run", "smoke", "--out", "no-such-folder/result.json"), "FILE_ERROR"),
        (("saturate", "--start-rate", "5", "--max-rate", "2"), "BAD_USAGE"),
        (
            ("saturate", "--tolerance", "1", "--protocol", "openai", "--server", "http://127.0.0.1:1"),
            "TARGET_UNREADY",
        ),
        (("run", "smoke", "--protocol", "openai", "--server", "http://127.0.0.1:1"), "TARGET_UNREADY"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_what_cannot_be_run_says_why(arguments: tuple[str, ...], reason: str) -> None:
    result = run(*arguments, "--json")

    assert document(result)["error"]["reason"] == reason
    assert result.exit_code in (ExitCode.BAD_INPUT, ExitCode.UNREACHABLE)


def test_the_scenarios_are_listed_and_shown() -> None:
    listed = document(run("scenarios", "--json"))["scenarios"]
    shown = run("scenarios", "soak")

    assert len(listed) == 9
    assert shown.stdout.startswith("name: soak")


@pytest.mark.slow
def test_a_saturation_search_is_printed_and_drawn(fake: FakeAddresses, tmp_path: Path) -> None:
    result = run(
        "saturate", *at(fake), "--start-rate", "20", "--max-rate", "40", "--trial", "1", "--answer-tokens", "3",
        "--set", "objectives.ttft_s=5", "--html", str(tmp_path / "s.html"), "--json",
    )  # fmt: skip

    assert document(result)["sustained_rate"] == 40
    assert (tmp_path / "s.html").read_text().count("<svg") == 1


@pytest.mark.slow
@pytest.mark.waits
def test_the_self_test_recovers_what_is_known_within_two_percent() -> None:
    result = run("selftest", "--json")

    found = document(result)
    assert found["is_right"], [one for one in found["checks"] if not one["is_right"]]
    assert result.exit_code == ExitCode.OK
    assert len(found["checks"]) == 10
