"""Signatures made by the library's own signer, with keys and certificates of a moment ago."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from model_signing import hashing, signing

from loraplex_adapters.errors import AdapterInvalidError, SignatureError, SignatureRequiredError
from loraplex_server.admission.jobs import AdmissionBudget
from loraplex_server.admission.pool import AdmissionPool
from loraplex_server.admission.signature_trust import SignatureTrust, check_signature_settings
from loraplex_server.admission.signing import MAX_SIGNATURE_BYTES, signer_under, verify_signature
from tests.unit.admission.packages import CONFIG, MANIFEST, SIGNATURE, WEIGHTS, job, write_manifest


@dataclass(frozen=True)
class Key:
    private: Path
    public: Path


def make_key(folder: Path, name: str, curve: ec.EllipticCurve | None = None) -> Key:
    key = ec.generate_private_key(curve or ec.SECP256R1())
    paths = Key(folder / f"{name}.key", folder / f"{name}.pem")
    write_private(paths.private, key)
    public = serialization.PublicFormat.SubjectPublicKeyInfo
    paths.public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, public))
    return paths


def write_private(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pkcs8 = serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, serialization.NoEncryption()))


def sign(folder: Path, key: Key, ignore: tuple[str, ...] = ()) -> None:
    config = signing.Config().use_elliptic_key_signer(private_key=key.private)
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[SIGNATURE, *ignore]))
    config.sign(folder, folder / SIGNATURE)


@pytest.fixture
def key(tmp_path: Path) -> Key:
    return make_key(tmp_path, "release-team")


@pytest.fixture
def trust(key: Key) -> SignatureTrust:
    return SignatureTrust(public_keys=(key.public,))


@pytest.fixture
def signed(package: Path, key: Key) -> Path:
    sign(write_manifest(package), key)
    return package


def test_the_signer_is_named_after_the_key(signed: Path, trust: SignatureTrust) -> None:
    assert verify_signature(signed, trust).startswith("key release-team (")


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_the_longer_curves_hold_too(package: Path, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    key = make_key(tmp_path, "long", curve)
    sign(package, key)

    assert verify_signature(package, SignatureTrust(public_keys=(key.public,))).startswith("key long (")


def test_one_of_several_keys_is_enough(signed: Path, key: Key, tmp_path: Path) -> None:
    other = make_key(tmp_path, "other")

    signer = verify_signature(signed, SignatureTrust(public_keys=(other.public, key.public)))

    assert signer.startswith("key release-team (")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, MANIFEST])
def test_a_file_that_was_changed_after_signing_is_refused(
    signed: Path, trust: SignatureTrust, name: str
) -> None:
    (signed / name).write_bytes((signed / name).read_bytes() + b" ")

    with pytest.raises(SignatureError, match=f"{name} was changed"):
        verify_signature(signed, trust)


def test_a_foreign_key_is_refused(signed: Path, tmp_path: Path) -> None:
    other = make_key(tmp_path, "other")

    with pytest.raises(SignatureError, match="none of the keys"):
        verify_signature(signed, SignatureTrust(public_keys=(other.public,)))


def test_a_missing_signature_is_refused(package: Path, trust: SignatureTrust) -> None:
    with pytest.raises(SignatureRequiredError, match=r"no model\.sig"):
        verify_signature(package, trust)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_signature_that_leaves_one_of_the_two_files_out_is_refused(
    package: Path, key: Key, trust: SignatureTrust, name: str
) -> None:
    sign(package, key, ignore=(name,))

    with pytest.raises(SignatureError, match=f"does not cover {name}"):
        verify_signature(package, trust)


def test_signed_files_that_the_server_never_takes_in_may_be_absent(
    package: Path, key: Key, trust: SignatureTrust
) -> None:
    (package / "README.md").write_text("by PEFT")
    sign(package, key)
    (package / "README.md").unlink()

    assert verify_signature(package, trust)


def test_a_signature_of_shards_is_refused_with_what_to_do(
    package: Path, key: Key, trust: SignatureTrust
) -> None:
    config = signing.Config().use_elliptic_key_signer(private_key=key.private)
    config.set_hashing_config(hashing.Config().use_shard_serialization(shard_size=100))
    config.sign(package, package / SIGNATURE)

    with pytest.raises(SignatureError, match="file by file"):
        verify_signature(package, trust)


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"[]", b'{"verificationMaterial": 1}', b"\xff\xfe", b"[" * 100_000]
)
def test_a_malformed_signature_is_refused(package: Path, trust: SignatureTrust, raw: bytes) -> None:
    (package / SIGNATURE).write_bytes(raw)

    with pytest.raises(SignatureError):
        verify_signature(package, trust)


def test_a_signature_that_was_bent_is_refused(signed: Path, trust: SignatureTrust) -> None:
    text = (signed / SIGNATURE).read_text()
    begin = text.index('"sig":"') + 20
    (signed / SIGNATURE).write_text(text[:begin] + ("A" if text[begin] != "A" else "B") + text[begin + 1 :])

    with pytest.raises(SignatureError):
        verify_signature(signed, trust)


def test_a_large_signature_is_refused(package: Path, trust: SignatureTrust) -> None:
    (package / SIGNATURE).write_bytes(b" " * (MAX_SIGNATURE_BYTES + 1))

    with pytest.raises(SignatureError, match="bytes"):
        verify_signature(package, trust)


def test_a_signature_that_is_a_named_pipe_is_refused(package: Path, trust: SignatureTrust) -> None:
    os.mkfifo(package / SIGNATURE)

    with pytest.raises(AdapterInvalidError, match="regular file"):
        verify_signature(package, trust)


def test_each_policy_takes_what_it_takes(signed: Path, trust: SignatureTrust, tmp_path: Path) -> None:
    nobody = SignatureTrust(public_keys=(make_key(tmp_path, "other").public,))

    assert signer_under("off", signed, trust) == ("", "")
    assert signer_under("off", signed, nobody) == ("", "")
    assert signer_under("require", signed, trust) == signer_under("warn", signed, trust)
    signer, warning = signer_under("warn", signed, nobody)
    assert (signer, "none of the keys" in warning) == ("", True)
    (signed / SIGNATURE).unlink()
    signer, warning = signer_under("warn", signed, trust)
    assert (signer, "no model.sig" in warning) == ("", True)
    with pytest.raises(SignatureRequiredError):
        signer_under("require", signed, trust)


@dataclass(frozen=True)
class Authority:
    """A root certificate and one that it gave out for signing."""

    root: Path
    certificate: Path
    key: Path


def make_authority(folder: Path, name: str, *, may_sign: bool = True) -> Authority:
    root_key, leaf_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root_name, leaf_name = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (f"{name} root", name)
    )
    now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)

    def certificate(subject: x509.Name, key: ec.EllipticCurvePrivateKey, is_root: bool) -> x509.Certificate:
        usage = dict.fromkeys(
            (
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(root_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=may_sign and not is_root,
                    key_cert_sign=is_root,
                    crl_sign=is_root,
                    **usage,
                ),
                critical=True,
            )
            .sign(root_key, hashes.SHA256())
        )

    paths = Authority(folder / f"{name}-root.pem", folder / f"{name}.pem", folder / f"{name}.key")
    pem = serialization.Encoding.PEM
    paths.root.write_bytes(certificate(root_name, root_key, True).public_bytes(pem))
    paths.certificate.write_bytes(certificate(leaf_name, leaf_key, False).public_bytes(pem))
    write_private(paths.key, leaf_key)
    return paths


def sign_with_certificate(folder: Path, authority: Authority) -> None:
    config = signing.Config().use_certificate_signer(
        private_key=authority.key,
        signing_certificate=authority.certificate,
        certificate_chain=[authority.root],
    )
    config.sign(folder, folder / SIGNATURE)


def test_a_certificate_of_a_trusted_root_names_its_subject(package: Path, tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "models.example")
    sign_with_certificate(package, authority)

    assert (
        verify_signature(package, SignatureTrust(certificate_chain=(authority.root,))) == "CN=models.example"
    )


def test_a_certificate_of_another_root_is_refused_and_no_root_is_no_trust(
    package: Path, tmp_path: Path, trust: SignatureTrust
) -> None:
    sign_with_certificate(package, make_authority(tmp_path, "models.example"))
    other = make_authority(tmp_path, "other.example")

    for other_trust in (SignatureTrust(certificate_chain=(other.root,)), trust):
        with pytest.raises(SignatureError, match="none of the keys and certificates"):
            verify_signature(package, other_trust)


def test_a_certificate_that_is_not_for_signing_is_refused(package: Path, tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "web.example", may_sign=False)
    sign_with_certificate(package, authority)

    with pytest.raises(SignatureError):
        verify_signature(package, SignatureTrust(certificate_chain=(authority.root,)))


async def test_the_pool_reports_signer_and_warning(
    signed: Path, trust: SignatureTrust, caplog: pytest.LogCaptureFixture
) -> None:
    pool = AdmissionPool(AdmissionBudget(), checks_signatures=True)
    await pool.start()
    admitted = await pool.check(job(signed, signature_policy="require", trust=trust))
    (signed / SIGNATURE).write_bytes(b"{}")
    warned = await pool.check(job(signed, signature_policy="warn", trust=trust))
    with pytest.raises(SignatureError):
        await pool.check(job(signed, signature_policy="require", trust=trust))
    await pool.close()

    assert admitted.signer.startswith("key release-team (")
    assert warned.signer == ""
    assert "damaged" in warned.warning
    assert "signature is not in order" in caplog.text


def test_settings_that_can_be_met_are_taken(trust: SignatureTrust, tmp_path: Path) -> None:
    root = make_authority(tmp_path, "models.example").root

    check_signature_settings("off", SignatureTrust())
    check_signature_settings("require", trust)
    check_signature_settings("warn", SignatureTrust(certificate_chain=(root,)))


def test_settings_that_nothing_could_meet_are_refused_with_what_to_do(key: Key, tmp_path: Path) -> None:
    absent = tmp_path / "absent.pem"
    for trust, message in (
        (SignatureTrust(), "needs a public key"),
        (SignatureTrust(public_keys=(absent,)), "public key"),
        (SignatureTrust(public_keys=(key.private,)), "public key"),
        (SignatureTrust(certificate_chain=(absent,)), "certificates"),
        (SignatureTrust(certificate_chain=(key.public,)), "certificates"),
    ):
        with pytest.raises(ValueError, match=message):
            check_signature_settings("warn", trust)


def test_a_policy_without_its_packages_says_what_to_install(
    trust: SignatureTrust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(ValueError, match=r"loraplex\[signing\]"):
        check_signature_settings("require", trust)
