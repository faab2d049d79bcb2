"""What the engine says of its start or of a sequence that failed, as the exception it stands for."""

from __future__ import annotations

from loraplex_adapters.errors import (
    AdapterInvalidError,
    AdapterTooLargeError,
    AdapterUnavailableError,
    LoraplexError,
)
from loraplex_server.engine.memory_plan import InsufficientMemoryError
from loraplex_server.engine.messages import EngineFailed, FinishReason, TokenOutput
from loraplex_server.errors import ContextOverflowError, EngineUnavailableError, SequenceFailedError

_BY_REASON: dict[str, type[LoraplexError]] = {
    error.reason: error
    for error in (AdapterInvalidError, AdapterTooLargeError, AdapterUnavailableError, ContextOverflowError)
}


def start_error(failure: EngineFailed | None) -> LoraplexError:
    """Why there is no engine; `failure` is what it said, None if it died without a word.

    Settings that cannot be served are told by their own reason: to try again would not help.
    """
    if failure is None:
        return EngineUnavailableError("the engine process died while starting")
    is_settings = failure.reason == InsufficientMemoryError.reason
    return (InsufficientMemoryError if is_settings else EngineUnavailableError)(failure.message)


def engine_error(reason: str | None, message: str | None) -> LoraplexError:
    """The error of a reason; SequenceFailedError for one that is not the caller's affair."""
    return _BY_REASON.get(reason or "", SequenceFailedError)(message or "the engine gave up on this request")


def raise_failure(output: TokenOutput) -> None:
    """Raise what an output of finish reason ERROR stands for; return for all others."""
    if output.finish_reason is FinishReason.ERROR:
        raise engine_error(output.error_reason, output.error_message)
