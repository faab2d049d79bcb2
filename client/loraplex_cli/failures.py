"""From an exception to what the user sees: an exit code, a stable reason, a message."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loraplex_cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from loraplex_client.errors import LoraplexApiError


class CommandError(Exception):
    """A failure that a command itself found."""

    def __init__(
        self, message: str, exit_code: ExitCode, reason: str, details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.reason = reason
        self.details = details or {}  # further keys of the JSON document


@dataclass(frozen=True, slots=True)
class Failure:
    """What to print and how to end."""

    exit_code: ExitCode
    reason: str  # UPPER_SNAKE
    message: str
    details: dict[str, Any]

    @property
    def hint(self) -> str:
        """What to type next; empty where nobody can know."""
        return _HINTS.get(self.reason, "")

    def document(self) -> dict[str, Any]:
        return {
            "error": {
                "exit_code": int(self.exit_code),
                "reason": self.reason,
                "message": self.message,
                **self.details,
            }
        }


def failure_of(error: Exception, extra: str | None = None) -> Failure | None:
    """None for an exception that is a bug of ours: it deserves its traceback.

    extra  of the distribution that the command needs; None: tell it by the library that is missing.
    """
    # Imported here: a command that succeeds should not pay for the ways to fail.
    from loraplex_adapters.errors import LoraplexError
    from loraplex_client.errors import LoraplexApiError
    from loraplex_loadtest.errors import LoadTestError

    if isinstance(error, CommandError):
        return Failure(error.exit_code, error.reason, str(error), error.details)
    if isinstance(error, LoraplexApiError):
        return _api_failure(error)
    if isinstance(error, LoraplexError):
        # Some errors of the trainer carry the numbers behind their message.
        return Failure(exit_code_of(error.reason), error.reason, str(error), getattr(error, "details", {}))
    if isinstance(error, LoadTestError):
        return Failure(LOADTEST_EXIT_CODES[error.reason], error.reason, str(error), {})
    if isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError | IsADirectoryError):
        return Failure(ExitCode.BAD_INPUT, "FILE_ERROR", str(error), {})
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        place = f"'{error.filename}'" if error.filename else "the output"
        message = f"{place} cannot be written: {error.strerror}; make room, or name another place"
        return Failure(ExitCode.FAILURE, "OUTPUT_FAILED", message, {})
    library = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if library in EXTRA_OF:
        extra = extra or EXTRA_OF[library]
        message = f"this command needs the extra '{extra}': pip install 'loraplex[{extra}]'"
        return Failure(ExitCode.BAD_INPUT, "EXTRA_MISSING", message, {})
    return None


_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_HOW_TO_REACH_ONE = "start one with `loraplex serve`, or name one with `--server HOST:PORT`"

_HINTS = {
    "ADAPTER_EXISTS": "`--add-version` registers it beside the others, `--promote` makes it what the name serves, too",
    "ADAPTER_NOT_FOUND": "`loraplex adapters list` shows what names there are, `loraplex adapters show NAME` "
    "the versions and aliases of one",
}
"""Reason -> what text says behind the message. The document has the reason, and needs none."""

INPUT_REASONS = frozenset(
    {
        "ADAPTER_INVALID",
        "BASE_MISMATCH",
        "BASE_MODEL_INVALID",
        "GATE_NOT_PASSED",
        "INVALID_CONFIG",
        "INVALID_REQUEST",
        "MERGE_REFUSED",
        "NON_FINITE_WEIGHTS",
        "QUANT_BACKEND_UNAVAILABLE",
        "RECIPE_INVALID",
        "RUN_FOLDER_INVALID",
        "RUN_INCOMPLETE",
        "SUITE_UNAVAILABLE",
        "TRAINING_DATA_INVALID",
        "UNSUPPORTED_ARCHITECTURE",
        "UNSUPPORTED_FORMAT",
        "UNSUPPORTED_PEFT_FEATURE",
    }
)
"""Reasons whose cause is what the user gave, not what happened."""

_EXIT_CODES = {"TRAINING_DOES_NOT_FIT": ExitCode.DOES_NOT_FIT}
"""Reasons that have an exit code of their own."""


def exit_code_of(reason: str) -> ExitCode:
    """Of an error of this machine, not of the server."""
    if reason in INPUT_REASONS:
        return ExitCode.BAD_INPUT
    return _EXIT_CODES.get(reason, ExitCode.FAILURE)


LOADTEST_EXIT_CODES = {
    "GENERATOR_FAILED": ExitCode.FAILURE,
    "PROMPT_LENGTH": ExitCode.BAD_INPUT,
    "RESULT_INVALID": ExitCode.BAD_INPUT,
    "SCENARIO_INVALID": ExitCode.BAD_INPUT,
    "TARGET_FEATURE": ExitCode.BAD_INPUT,
    "TARGET_UNREADY": ExitCode.UNREACHABLE,
    "TRAINING_FAILED": ExitCode.FAILURE,
}
"""Reasons of the load tester's own tree, which is none of the server's."""

EXTRA_OF = {
    "aiohttp": "loadtest",
    "alembic": "server",
    "bitsandbytes": "server",
    "charset_normalizer": "trainer",
    "cryptography": "signing",
    "datasets": "trainer",
    "datasketch": "trainer",
    "filelock": "server",
    "ftfy": "trainer",
    "fsspec": "server",
    "gguf": "server",
    "grpc_health": "server",
    "grpc_reflection": "server",
    "hdrh": "loadtest",
    "huggingface_hub": "server",
    "jinja2": "server",
    "llvmlite": "server",
    "matplotlib": "trainer",
    "model_signing": "signing",
    "msgspec": "server",
    "numba": "server",
    "numpy": "server",
    "peft": "trainer",
    "phonenumbers": "trainer",
    "prometheus_client": "server",
    "psutil": "server",
    "pyarrow": "trainer",
    "pypdf": "trainer",
    "safetensors": "server",
    "scipy": "trainer",
    "sigstore_models": "signing",
    "sqlalchemy": "server",
    "tokenizers": "server",
    "torch": "server",
    "trafilatura": "trainer",
    "transformers": "server",
    "trl": "trainer",
    "xxhash": "server",
    "zmq": "server",
}
"""Library that the light installation lacks -> the extra that brings it."""


def api_details(error: LoraplexApiError) -> dict[str, Any]:
    """What a refusal says besides reason and message, as JSON values."""
    details: dict[str, Any] = {"status": error.code.name}
    if error.request_id:
        details["request_id"] = error.request_id
    if error.retry_after_s is not None:
        details["retry_after_s"] = error.retry_after_s
    if error.violations:
        details["violations"] = [
            {"field": entry.field, "description": entry.description} for entry in error.violations
        ]
    return details


def _api_failure(error: LoraplexApiError) -> Failure:
    from loraplex_client.errors import DeadlineError, ServerFaultError, ServerUnreachableError

    code, message = ExitCode.REFUSED, error.message
    if isinstance(error, ServerUnreachableError):
        code = ExitCode.UNREACHABLE
        message = f"no server answers; {_HOW_TO_REACH_ONE}: {message}"
    elif isinstance(error, ServerFaultError):
        code = ExitCode.FAILURE
    elif isinstance(error, DeadlineError):
        message = f"the time is up before the answer is whole; allow more with `--timeout SECONDS`: {message}"
    return Failure(code, error.reason or error.code.name, message, api_details(error))
