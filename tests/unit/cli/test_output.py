from __future__ import annotations

import io
import json
import logging
import sys

import pytest
import typer

from loraplex_adapters.errors import AdapterIncompatibleError, AdapterInvalidError, LoraplexError
from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.failures import CommandError, failure_of
from loraplex_cli.logs import JsonFormatter, StandardErrorHandler, TextFormatter
from loraplex_cli.output import columns, command
from loraplex_cli.progress import counting_bar, stage_bars


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CommandError("x", ExitCode.WRONG_RESULT, "R"), ExitCode.WRONG_RESULT),
        (AdapterInvalidError("x"), ExitCode.BAD_INPUT),
        (AdapterIncompatibleError("x"), ExitCode.BAD_INPUT),
        (LoraplexError("x"), ExitCode.FAILURE),
        (FileNotFoundError("x"), ExitCode.BAD_INPUT),
        (ModuleNotFoundError("x", name="torch"), ExitCode.BAD_INPUT),
    ],
)
def test_a_known_error_has_its_exit_code(error: Exception, code: ExitCode) -> None:
    failure = failure_of(error)

    assert failure is not None
    assert failure.exit_code == code


def test_a_missing_extra_is_named() -> None:
    failure = failure_of(ModuleNotFoundError("x", name="trl"))

    assert failure is not None
    assert "loraplex[trainer]" in failure.message


def test_a_part_of_a_missing_library_names_the_extra_too() -> None:
    failure = failure_of(ModuleNotFoundError("x", name="grpc_health.v1"))

    assert failure is not None
    assert "loraplex[server]" in failure.message


def test_the_extra_that_a_command_needs_goes_before_the_one_of_the_library() -> None:
    failure = failure_of(ModuleNotFoundError("x", name="torch"), extra="trainer")

    assert failure is not None
    assert "loraplex[trainer]" in failure.message


def test_a_module_of_ours_that_is_missing_is_a_bug() -> None:
    assert failure_of(ModuleNotFoundError("x", name="loraplex_server.nothing")) is None


def test_a_bug_keeps_its_traceback() -> None:
    assert failure_of(KeyError("x")) is None
    with pytest.raises(KeyError), command(as_json=True):
        raise KeyError("x")


def test_ctrl_c_has_its_own_exit_code() -> None:
    with pytest.raises(typer.Exit) as caught, command(as_json=False):
        raise KeyboardInterrupt

    assert caught.value.exit_code == ExitCode.INTERRUPTED


def test_columns_are_aligned_without_trailing_spaces() -> None:
    assert columns(("a", "bb"), [("long", 1)]) == "a     bb\nlong  1"


def test_progress_without_a_report_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with stage_bars():
        pass

    assert capsys.readouterr() == ("", "")


def test_off_a_terminal_a_stage_is_a_plain_line_when_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    with stage_bars() as report:
        report("convert", 1, 2)
        report("convert", 2, 2)
        report("load", 0, 1)
        report("convert", 0, 2)

    assert capsys.readouterr() == ("", "convert\nload\n")


def test_on_a_terminal_bars_go_away_when_all_is_done_and_come_back_with_the_next_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with stage_bars() as report:
        report("convert", 2, 2)
        after_first = capsys.readouterr().err
        report("load", 1, 1)
        after_second = capsys.readouterr().err

    assert "convert" in after_first
    assert ("load" in after_second, "convert" in after_second) == (True, False)


def test_a_counting_bar_counts_calls(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    with counting_bar("streams", 4) as advance:
        advance()
        advance()

    assert "50%" in capsys.readouterr().err


def test_log_lines_go_to_what_is_standard_error_when_they_are_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = StandardErrorHandler()
    elsewhere = io.StringIO()

    handler.emit(_record())
    monkeypatch.setattr(sys, "stderr", elsewhere)
    handler.emit(_record())

    assert capsys.readouterr().err == elsewhere.getvalue() == "adapter x\n"


def _record() -> logging.LogRecord:
    record = logging.LogRecord("l", logging.INFO, "f", 1, "adapter %s", ("x",), None)
    record.slot = 3
    return record


def test_a_json_log_line_carries_its_fields() -> None:
    line = json.loads(JsonFormatter().format(_record()))

    assert (line["message"], line["slot"], line["level"]) == ("adapter x", 3, "INFO")


def test_a_text_log_line_carries_its_fields_and_the_traceback() -> None:
    record = _record()
    try:
        raise ValueError("boom")
    except ValueError:
        record.exc_info = sys.exc_info()

    line = TextFormatter().format(record)

    assert "INFO l: adapter x slot=3" in line
    assert "ValueError: boom" in line
