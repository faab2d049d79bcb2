"""The error tree of Loraplex. The core raises these; only `loraplex_server.rpc` knows gRPC.

LoraplexError
├── InvalidRequestError          what a caller sent cannot be served as it is
├── AdapterError
│   ├── AdapterNotFoundError     no adapter, version or alias of that name
│   ├── AdapterExistsError       the name is taken by other weights
│   ├── AdapterInvalidError      the package itself is malformed, or over a budget
│   │   ├── UnsupportedFormatError  it holds a pickle, or names code to run
│   │   ├── UnsupportedPeftFeatureError  it is sound, and uses what is not served
│   │   ├── NonFiniteWeightsError  a weight is NaN or infinite
│   │   └── DigestMismatchError  it is another package than the caller expected
│   ├── AdapterIncompatibleError the package is sound but does not fit this base
│   ├── AdapterTooLargeError     it does not fit the memory for resident adapters
│   ├── AdapterUnavailableError  registered, but its stored package is missing or damaged
│   ├── NoEffectError            the package fits, and no answer of the base changes
│   ├── SourceUnavailableError   what the URL names cannot be read
│   ├── SignatureError           the signature is not that of the package, or of nobody who is trusted
│   │   └── SignatureRequiredError  there is none, and this server wants one
│   ├── VersionInUseError        an alias, a split or a shadow names the version
│   ├── AliasInUseError          "stable", or an alias that a split or a shadow names
│   ├── VersionDeprecatedError   not to be promoted, split to or shadowed any more
│   ├── NothingToRollBackError   the alias has pointed at no earlier version
│   ├── TooManyPinnedError       no adapter slot would be left for the others
│   ├── TooManyVersionsError     one adapter has as many versions as it may
│   ├── QuotaExceededError       the tenant has as many adapters or bytes as it may
│   ├── EtagMismatchError        the adapter was changed since the caller read it
│   ├── RequestIdReusedError     the request id belongs to a request of other content
│   ├── EventsExpiredError       the events behind that token are not kept any more
│   ├── UploadBusyError          another call carries on the same upload
│   └── UploadMismatchError      what is kept of the upload is of another adapter or package
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


def invalid(field: str, description: str) -> InvalidRequestError:
    """One violation."""
    return InvalidRequestError([FieldViolation(field, description)])


class AdapterError(LoraplexError):
    """Something about an adapter."""

    reason = "ADAPTER_ERROR"


class AdapterNotFoundError(AdapterError):
    """No adapter of that name is registered, or it has no such version or alias."""

    reason = "ADAPTER_NOT_FOUND"


class AdapterExistsError(AdapterError):
    """The name is in use by a package with another digest."""

    reason = "ADAPTER_EXISTS"


NOT_FINITE = (
    "the adapter's answers are not finite numbers: its weights or scaling are too large for this base"
)
"""Of an adapter whose weights are finite: what overflows depends on the base and the prompt."""


class AdapterInvalidError(AdapterError):
    """The package is malformed or over a budget, or one of the kinds that the subclasses tell apart."""

    reason = "ADAPTER_INVALID"

    def __init__(self, message: str, field: str = "") -> None:
        """`field` of adapter_config.json, e.g. "r", where one is at fault. It is sent as google.rpc.BadRequest."""
        super().__init__(message)
        self.field = field


class UnsupportedFormatError(AdapterInvalidError):
    """The package holds a file whose loading would run code, or names code to run. Neither is opened."""

    reason = "UNSUPPORTED_FORMAT"


class UnsupportedPeftFeatureError(AdapterInvalidError):
    """The package uses features of PEFT that are not served; the message lists them."""

    reason = "UNSUPPORTED_PEFT_FEATURE"


class NonFiniteWeightsError(AdapterInvalidError):
    """A weight of the package is NaN or infinite; the message names its tensor."""

    reason = "NON_FINITE_WEIGHTS"


class AdapterIncompatibleError(AdapterError):
    """The package does not fit the resident base model; the message lists what does not land."""

    reason = "BASE_MISMATCH"


class AdapterTooLargeError(AdapterError):
    """The adapter is larger than the memory for all resident ones, or than what pinned ones leave of it."""

    reason = "ADAPTER_TOO_LARGE"


class AdapterUnavailableError(AdapterError):
    """The stored package of a registered adapter is missing or damaged."""

    reason = "ADAPTER_UNAVAILABLE"


class DigestMismatchError(AdapterInvalidError):
    """The package has another digest than the caller said it must have."""

    reason = "DIGEST_MISMATCH"


class NoEffectError(AdapterError):
    """The package fits the base and changes none of its answers to the golden prompts."""

    reason = "NO_EFFECT"


class SourceUnavailableError(AdapterError):
    """The folder that a URL names cannot be read."""

    reason = "SOURCE_UNAVAILABLE"


class SignatureError(AdapterError):
    """The package's signature does not cover its files, or is of nobody that this server trusts."""

    reason = "SIGNATURE_INVALID"


class SignatureRequiredError(SignatureError):
    """The package has no signature, and this server takes none without."""

    reason = "SIGNATURE_REQUIRED"


class VersionInUseError(AdapterError):
    """The version cannot be removed while an alias, a split or a shadow names it."""

    reason = "VERSION_IN_USE"


class AliasInUseError(AdapterError):
    """The alias cannot be removed: it is "stable", or a split or a shadow names it."""

    reason = "ALIAS_IN_USE"


class VersionDeprecatedError(AdapterError):
    """A deprecated version may not be promoted, nor be given traffic or a shadow that it has not."""

    reason = "VERSION_DEPRECATED"


class NothingToRollBackError(AdapterError):
    """The alias has pointed at no earlier version that is still there."""

    reason = "NOTHING_TO_ROLL_BACK"


class TooManyPinnedError(AdapterError):
    """The pin would leave no adapter slot for those that are not pinned."""

    reason = "TOO_MANY_PINNED"


class TooManyVersionsError(AdapterError):
    """The adapter has as many versions as one may have."""

    reason = "TOO_MANY_VERSIONS"


class QuotaExceededError(AdapterError):
    """The tenant has as many adapters, or bytes of packages, as it may have."""

    reason = "QUOTA_EXCEEDED"

    def __init__(self, description: str, subject: str = "") -> None:
        """What the limit is, and whose: "tenants/T". Both are sent as google.rpc.QuotaFailure."""
        super().__init__(f"{subject}: {description}" if subject else description)
        self.description = description
        self.subject = subject


class EtagMismatchError(AdapterError):
    """The adapter was changed since the caller read it."""

    reason = "ETAG_MISMATCH"


class RequestIdReusedError(AdapterError):
    """The request id was used before, for a request of other content."""

    reason = "REQUEST_ID_REUSED"


class EventsExpiredError(AdapterError):
    """Events behind the given revision are not kept any more."""

    reason = "EVENTS_EXPIRED"


class UploadBusyError(AdapterError):
    """Another call is carrying on the same upload."""

    reason = "UPLOAD_BUSY"


class UploadMismatchError(AdapterError):
    """What is kept of the upload was sent for another adapter, or is of another package."""

    reason = "UPLOAD_MISMATCH"


class StorageError(LoraplexError):
    """The disk or the registry's database cannot take or give what it should; the log has the cause."""

    reason = "STORAGE_UNAVAILABLE"
