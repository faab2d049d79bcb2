"""The error tree of Loraplex. The core raises these; only `loraplex_server.rpc` knows gRPC.

LoraplexError
├── InvalidRequestError          what a caller sent cannot be served as it is
├── AdapterError
│   ├── AdapterNotFoundError     no adapter of that name
│   ├── AdapterExistsError       the name is taken by other weights
│   ├── AdapterInvalidError      the package itself is malformed or uses an unsupported PEFT feature
│   ├── AdapterIncompatibleError the package is sound but does not fit this base
│   ├── AdapterTooLargeError     it does not fit the memory for resident adapters
│   └── AdapterUnavailableError  registered, but its stored package is missing or damaged
├── StorageError                 the disk or the registry's database fails
└── (server branches: loraplex_server.errors)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


class LoraplexError(Exception):
    """Base of all errors that are meant for a caller.

    The message says what to do, and holds no secret or path.
    """

    reason: ClassVar[str] = "INTERNAL"  # stable UPPER_SNAKE code, sent as google.rpc.ErrorInfo.reason


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One thing wrong with one field of a request."""

    field: str
    description: str


class InvalidRequestError(LoraplexError):
    """A request breaks the documented range of one or more fields; all violations are listed at once."""

    reason = "INVALID_REQUEST"

    def __init__(self, violations: list[FieldViolation]) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = violations


class AdapterError(LoraplexError):
    """Something about an adapter."""

    reason = "ADAPTER_ERROR"


class AdapterNotFoundError(AdapterError):
    """No adapter of that name is registered."""

    reason = "ADAPTER_NOT_FOUND"


class AdapterExistsError(AdapterError):
    """The name is in use by a package with another digest."""

    reason = "ADAPTER_EXISTS"


class AdapterInvalidError(AdapterError):
    """The package is malformed, over a budget, or uses a PEFT feature that is not served."""

    reason = "ADAPTER_INVALID"


class AdapterIncompatibleError(AdapterError):
    """The package does not fit the resident base model; the message lists what does not land."""

    reason = "BASE_MISMATCH"


class AdapterTooLargeError(AdapterError):
    """The adapter alone is larger than the memory for all resident ones."""

    reason = "ADAPTER_TOO_LARGE"


class AdapterUnavailableError(AdapterError):
    """The stored package of a registered adapter is missing or damaged."""

    reason = "ADAPTER_UNAVAILABLE"


class StorageError(LoraplexError):
    """The disk or the registry's database cannot take or give what it should; the log has the cause."""

    reason = "STORAGE_UNAVAILABLE"
