"""Signatures of packages: `model.sig` as the tool `model_signing` writes it, verified with keys that are here.

Importing this takes 0.3 s, so that the processes that check packages do it while they start. Of the library only the
cryptography is used: its own comparison of files insists on files that the server never takes in, like the README
that PEFT writes, and on none besides.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from cryptography import x509
from model_signing._signing import sign_certificate, sign_ec_key
from model_signing._signing.sign_sigstore_pb import Signature
from model_signing.manifest import Manifest
from sigstore_models.common.v1 import X509CertificateChain

from loraplex_adapters.errors import SignatureError, SignatureRequiredError
from loraplex_adapters.manifest import MANIFEST_FILE
from loraplex_adapters.package import WEIGHTS_FILE, file_sha256, open_package_file
from loraplex_adapters.peft_config import CONFIG_FILE
from loraplex_server.admission.file_names import SIGNATURE_FILE
from loraplex_server.admission.signature_trust import SignaturePolicy, SignatureTrust

MAX_SIGNATURE_BYTES = 1024 * 1024
_MAX_SIGNER = 200  # characters


class Verifier(Protocol):
    """What the library has for keys and for certificates."""

    def verify(self, signature: Signature) -> Manifest:
        """What was signed. Raises whatever the library and its own raise where the signature does not hold."""


def signer_under(policy: SignaturePolicy, folder: Path, trust: SignatureTrust) -> tuple[str, str]:
    """(signer, warning) of a package. Under "warn", what is wrong becomes the warning, and the signer is empty.

    Raises SignatureError, of which SignatureRequiredError is one, under "require".
    """
    if policy == "off":
        return "", ""
    try:
        return verify_signature(folder, trust), ""
    except SignatureError as error:
        if policy == "require":
            raise
        return "", str(error)


def verify_signature(folder: Path, trust: SignatureTrust) -> str:
    """Verify that a key or certificate of `trust` signed the package; returns who that is.

    The signature must cover `adapter_config.json` and `adapter_model.safetensors`, by SHA-256. It may cover more,
    which need not be there: the server reads nothing else but `manifest.json`, which is compared where it is covered.
    A certificate is taken as of the day it became valid, as the library does: without a trusted clock in the
    signature, an expired one cannot be told from one that was valid when it signed.

    Raises SignatureRequiredError where the package has no signature, SignatureError where it has one that does not
    hold.
    """
    _check_file(folder)
    signed = _verified(folder / SIGNATURE_FILE, trust)
    if signed is None:
        raise SignatureError(
            f"{SIGNATURE_FILE} was made by none of the keys and certificates that this server trusts, or is damaged"
        )
    signer, hashes = signed
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in hashes:
            raise SignatureError(
                f"{SIGNATURE_FILE} does not cover {name} by SHA-256; sign the adapter's folder file by file"
            )
    for name in (CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE):
        if name in hashes and os.path.lexists(folder / name) and file_sha256(folder, name) != hashes[name]:
            raise SignatureError(f"{name} was changed after it was signed; sign the adapter anew")
    return signer


def _check_file(folder: Path) -> None:
    if not os.path.lexists(folder / SIGNATURE_FILE):
        raise SignatureRequiredError(
            f"the package has no {SIGNATURE_FILE}; sign it with `model_signing sign` and a key that this server trusts"
        )
    with open_package_file(folder, SIGNATURE_FILE) as file:
        if os.fstat(file.fileno()).st_size > MAX_SIGNATURE_BYTES:
            raise SignatureError(f"{SIGNATURE_FILE} has more than {MAX_SIGNATURE_BYTES} bytes")


def _verified(path: Path, trust: SignatureTrust) -> tuple[str, dict[str, str]] | None:
    """(signer, file -> SHA-256) of the first that made the signature; None where none did."""
    try:
        signature = Signature.read(path)
    except Exception:  # the library, pydantic and json raise what they like for a stranger's file
        return None
    for verifier, signer in _verifiers(trust, signature):
        try:
            manifest = verifier.verify(signature)
        except Exception:  # likewise, and OpenSSL: whatever it is, the signature does not hold for this one
            continue
        digests = {item.identifier: item.digest for item in manifest.resource_descriptors()}
        return signer, {name: d.digest_hex for name, d in digests.items() if d.algorithm == "sha256"}
    return None


def _verifiers(trust: SignatureTrust, signature: Signature) -> Iterator[tuple[Verifier, str]]:
    """Each verifier, and whom it stands for."""
    chain = signature.bundle.verification_material.x509_certificate_chain
    if chain is None:
        for path in trust.public_keys:
            fingerprint = hashlib.sha256(path.read_bytes().strip()).hexdigest()[:16]
            yield sign_ec_key.Verifier(path), f"key {path.stem} ({fingerprint})"[:_MAX_SIGNER]
    elif trust.certificate_chain:  # without one, the library would trust every web site's certificate
        yield sign_certificate.Verifier(trust.certificate_chain), _subject(chain)


def _subject(chain: X509CertificateChain) -> str:
    """Of the certificate that signed; empty where it cannot be read, which verifying finds out too."""
    try:
        certificate = x509.load_der_x509_certificate(chain.certificates[0].raw_bytes)
    except (ValueError, IndexError):
        return ""
    return certificate.subject.rfc4514_string()[:_MAX_SIGNER]
