"""Whose signatures count, and what happens to a package without one; no cryptography while none is asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SignaturePolicy = Literal["off", "warn", "require"]
"""off: signatures are not looked at. warn: whatever is wrong with one is logged. require: it is refused."""


@dataclass(frozen=True, slots=True)
class SignatureTrust:
    """Keys and certificates whose signatures count. PEM files of the operator; nothing is asked of a network."""

    public_keys: tuple[Path, ...] = ()  # elliptic curve keys: P-256, P-384 or P-521
    certificate_chain: tuple[Path, ...] = ()  # root and intermediate certificates of signing certificates

    @property
    def is_empty(self) -> bool:
        return not (self.public_keys or self.certificate_chain)


def check_signature_settings(policy: SignaturePolicy, trust: SignatureTrust) -> None:
    """Raises ValueError, whose message says what to set or install, where `policy` could never be met."""
    if policy == "off":
        return
    missing = [name for name in ("model_signing", "OpenSSL") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"signature policy '{policy}' needs the packages of the extra 'signing' ({', '.join(missing)} missing): "
            "pip install 'loraplex[signing]'"
        )
    if trust.is_empty:
        raise ValueError(f"signature policy '{policy}' needs a public key or a certificate chain to trust")
    for path in trust.public_keys:
        _check_readable(path, _is_public_key, "a PEM file of an elliptic curve's public key")
    for path in trust.certificate_chain:
        _check_readable(path, _is_certificate, "a PEM file of certificates")


def _check_readable(path: Path, is_right: Callable[[bytes], bool], what: str) -> None:
    try:
        if is_right(path.read_bytes()):
            return
    except (OSError, ValueError):
        pass  # said below
    raise ValueError(f"'{path}' of the signature settings is not {what}")


def _is_public_key(raw: bytes) -> bool:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    return isinstance(serialization.load_pem_public_key(raw), ec.EllipticCurvePublicKey)


def _is_certificate(raw: bytes) -> bool:
    from cryptography import x509

    return bool(x509.load_pem_x509_certificates(raw))
