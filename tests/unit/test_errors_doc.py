"""docs/errors.md is the error tree, its statuses and the command line's exit codes, no more and no less."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import grpc
from google.rpc import error_details_pb2, status_pb2

import loraplex_server.config
import loraplex_server.engine.memory_plan  # noqa: F401 (InsufficientMemoryError)
import loraplex_trainer.errors  # noqa: F401 (its classes belong to the tree)
from loraplex_adapters.errors import (
    DigestMismatchError,
    InvalidRequestError,
    LoraplexError,
    NonFiniteWeightsError,
    QuotaExceededError,
    SignatureRequiredError,
    UnsupportedFormatError,
    UnsupportedPeftFeatureError,
)
from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.failures import INPUT_REASONS, LOADTEST_EXIT_CODES, exit_code_of
from loraplex_loadtest.errors import LoadTestError
from loraplex_server.errors import QueueFullError
from loraplex_server.rpc.status import STATUS_OF, internal_status, malformed_status, rich_status

ROOT = Path(__file__).parents[2]
AGAIN = ("yes", "no", "maybe")
# Those that are named have reasons of their own, and an ancestor's status.
SENT: list[type[LoraplexError]] = [
    *STATUS_OF,
    DigestMismatchError,
    NonFiniteWeightsError,
    SignatureRequiredError,
    UnsupportedFormatError,
    UnsupportedPeftFeatureError,
]


def _table(heading: str) -> list[list[str]]:
    """Cells of the table that follows a heading."""
    section = (ROOT / "docs/errors.md").read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def _error(kind: type[LoraplexError]) -> LoraplexError:
    if issubclass(kind, InvalidRequestError):
        return kind([])
    if issubclass(kind, QuotaExceededError):
        return kind("message", "tenants/a")
    return QueueFullError("full", 2.0) if kind is QueueFullError else kind("message")


def _answer(status: grpc.Status) -> tuple[str, str, bool]:
    """(reason, status, whether it tells when to come back), as a client reads them."""
    (details,) = (value for key, value in status.trailing_metadata if key == "grpc-status-details-bin")
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    has_retry = False
    for detail in status_pb2.Status.FromString(details).details:
        detail.Unpack(info)
        has_retry |= detail.Unpack(retry)
    return info.reason, status.code.name, has_retry


def _tree(kind: type[LoraplexError] = LoraplexError) -> Iterator[type[LoraplexError]]:
    """The classes that are raised: leaves, and whatever has a status of its own."""
    if not kind.__subclasses__() or kind in STATUS_OF:
        yield kind
    for child in kind.__subclasses__():
        if child.__module__.startswith("loraplex_"):
            yield from _tree(child)


def test_every_answer_of_the_server_is_in_the_table_with_its_status_and_retry() -> None:
    statuses = [rich_status(_error(kind), "id") for kind in SENT]
    answers = {_answer(status) for status in (*statuses, internal_status("id"), malformed_status("id"))}

    documented = {
        (reason.strip("`"), status, again == "yes")
        for reason, status, again, _, _ in _table("What the server answers")
    }

    assert documented == answers


def test_every_row_says_whether_to_repeat_what_it_means_and_what_to_do() -> None:
    for _, _, again, meaning, remedy in _table("What the server answers"):
        assert again in AGAIN
        assert meaning
        assert remedy
    assert all(meaning and remedy for _, _, meaning, remedy in _table("What the command line adds"))


def test_every_other_reason_is_in_the_table_of_the_command_line_with_its_exit_code() -> None:
    answered = {kind.reason for kind in SENT}
    local = {kind.reason: exit_code_of(kind.reason) for kind in _tree() if kind.reason not in answered}

    documented = {reason.strip("`"): int(code) for reason, code, _, _ in _table("What the command line adds")}

    commands = {reason: code for reason, code in _reasons_of_commands().items() if reason not in answered}
    assert documented == {**local, **commands, **LOADTEST_EXIT_CODES}


def test_every_reason_that_counts_as_bad_input_is_of_the_tree() -> None:
    assert {kind.reason for kind in _tree()} >= INPUT_REASONS


def test_every_reason_of_the_load_tester_has_an_exit_code() -> None:
    assert {kind.reason for kind in LoadTestError.__subclasses__()} == LOADTEST_EXIT_CODES.keys()


def _reasons_of_commands() -> dict[str, ExitCode]:
    """Reason -> exit code of every CommandError and Failure that the sources make from constants."""
    found = {}
    for path in (ROOT / "client/loraplex_cli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("CommandError", "Failure"):
                continue
            codes = [ast.unparse(argument).rpartition(".")[2] for argument in node.args]
            reasons = [a.value for a in node.args if isinstance(a, ast.Constant) and str(a.value).isupper()]
            exit_codes = [ExitCode[code] for code in codes if code in ExitCode.__members__]
            if reasons:
                (found[str(reasons[0])],) = exit_codes
    return found
