"""What failed at a source, told from the errors of libraries that need not be installed, in words without their texts:
those may hold URLs and keys.
"""

from __future__ import annotations

from enum import Enum

_PACKAGE_OF_SCHEME = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
_EXTRA_OF_SCHEME = {"s3": "s3", "gs": "gcs", "gcs": "gcs"}
# Classes of botocore, aiohttp, google.auth and requests, by name; their subclasses are meant too.
_NO_CREDENTIALS = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "GoogleAuthError"}
)
_NO_CONNECTION = frozenset({"ConnectionError", "HTTPClientError", "ClientConnectionError", "gaierror"})


class Fault(Enum):
    """Kinds of failures that call for different things."""

    MISSING = "there is no such file, folder or bucket"
    FORBIDDEN = "the credentials may not read it, or are not known there"
    NO_CREDENTIALS = "there are none, or they cannot be used"
    UNREACHABLE = "nobody answers"
    OTHER = "anything else"


def fault_of(error: BaseException) -> Fault:
    """The kind of an error that a library raised."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, FileNotFoundError):
        return Fault.MISSING
    # gcsfs raises a plain OSError for 403, and for 401 an error of its own that has a code.
    if isinstance(error, PermissionError) or str(error).startswith("Forbidden"):
        return Fault.FORBIDDEN
    if getattr(error, "code", None) in (401, 403, "401", "403"):
        return Fault.FORBIDDEN
    if names & _NO_CREDENTIALS:
        return Fault.NO_CREDENTIALS
    if isinstance(error, TimeoutError) or names & _NO_CONNECTION:
        return Fault.UNREACHABLE
    return Fault.OTHER


def explanation(fault: Fault, error: BaseException, scheme: str, file_name: str) -> str:
    """One sentence for the caller: what is wrong, and what to do."""
    match fault:
        case Fault.MISSING:
            return f"the source has no {file_name}; check the URL"
        case Fault.FORBIDDEN:
            return (
                f"the source does not let this server read {file_name}; check the URL{_credentials(scheme)}"
            )
        case Fault.NO_CREDENTIALS:
            return f"the server has no credentials for {scheme} that work; its operator sets them in its environment"
        case Fault.UNREACHABLE:
            return f"the source cannot be reached; check the URL{_endpoint(scheme)}, or try again later"
        case Fault.OTHER:
            return f"the source cannot be read ({type(error).__name__}); try again later"


def silence(timeout_s: float, scheme: str) -> str:
    """Where nothing came for too long: libraries repeat much by themselves without a word."""
    hint = f"; check the URL{_endpoint(scheme)}{_credentials(scheme)}" if scheme in _PACKAGE_OF_SCHEME else ""
    return f"the source sent nothing for {timeout_s:g} s{hint}; try again later"


def missing_library(scheme: str) -> str:
    """Where fsspec has no file system for a scheme."""
    package = _PACKAGE_OF_SCHEME.get(scheme, f"that fsspec needs for {scheme}")
    extra = _EXTRA_OF_SCHEME.get(scheme)
    how = f"pip install 'loraplex[{extra}]'" if extra else "install it"
    return f"URLs of {scheme} need the Python package {package} on the server; {how} there"


def _credentials(scheme: str) -> str:
    return f", and the server's credentials for {scheme}" if scheme in _PACKAGE_OF_SCHEME else ""


def _endpoint(scheme: str) -> str:
    return f", and the server's endpoint for {scheme}" if scheme in _PACKAGE_OF_SCHEME else ""
