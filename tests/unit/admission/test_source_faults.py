"""What libraries of stores raise, told in words that say what to do, without their texts."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import aiohttp
import botocore.exceptions
import fsspec
import google.auth.exceptions
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from gcsfs.core import GCSFileSystem
from gcsfs.retry import HttpError

from loraplex_adapters.errors import SourceUnavailableError
from loraplex_server.admission.source_faults import Fault, explanation, fault_of
from tests.unit.admission.packages import CONFIG
from tests.unit.admission.test_sources import Answer, Site, fetch

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (FileNotFoundError(SECRET), Fault.MISSING),
        (PermissionError(SECRET), Fault.FORBIDDEN),
        (OSError(f"Forbidden: b/{SECRET}/o"), Fault.FORBIDDEN),
        (HttpError({"code": 401, "message": SECRET}), Fault.FORBIDDEN),
        (botocore.exceptions.NoCredentialsError(), Fault.NO_CREDENTIALS),
        (botocore.exceptions.PartialCredentialsError(provider="env", cred_var=SECRET), Fault.NO_CREDENTIALS),
        (google.auth.exceptions.RefreshError(SECRET), Fault.NO_CREDENTIALS),
        (botocore.exceptions.EndpointConnectionError(endpoint_url=SECRET), Fault.UNREACHABLE),
        (botocore.exceptions.ReadTimeoutError(endpoint_url=SECRET), Fault.UNREACHABLE),
        (aiohttp.ServerDisconnectedError(SECRET), Fault.UNREACHABLE),
        (ConnectionRefusedError(SECRET), Fault.UNREACHABLE),
        (socket.gaierror(SECRET), Fault.UNREACHABLE),
        (TimeoutError(SECRET), Fault.UNREACHABLE),
        (HttpError({"code": 500, "message": SECRET}), Fault.OTHER),
        (ValueError(SECRET), Fault.OTHER),
    ],
)
def test_an_error_of_a_library_is_known_for_what_it_is(error: Exception, fault: Fault) -> None:
    assert fault_of(error) is fault
    assert SECRET not in explanation(fault_of(error), error, "s3", CONFIG)


@pytest.fixture
def bucket(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site where Google's storage and its givers of tokens are looked for, with a service account."""
    site = Site(package)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    account = {
        "type": "service_account",
        "client_email": f"{SECRET}@example.com",
        "private_key": pem,
        "token_uri": f"{site.url}/token",
    }
    (tmp_path / "account.json").write_text(json.dumps(account), encoding="utf-8")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", site.url)
    # Not the one with experimental features, which asks Google itself about the bucket.
    monkeypatch.setattr(fsspec, "filesystem", lambda scheme: GCSFileSystem(skip_instance_cache=True))
    yield site
    site.close()


def answering(status: int, body: object, token: str = "") -> Answer:
    """The same to everything, but with a token to who asks for one."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if token and handler.path == "/token":
            respond(handler, 200, {"access_token": token, "expires_in": 3600, "token_type": "Bearer"})
        else:
            respond(handler, status, body)

    return answer


def respond(handler: BaseHTTPRequestHandler, status: int, body: object) -> None:
    handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    content = json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(content)))
    handler.send_header("Content-Type", "application/json")
    handler.end_headers()
    handler.wfile.write(content)


async def test_an_account_that_may_not_read_a_bucket_is_told_as_such(
    bucket: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.answer = answering(403, {"error": {"message": f"{SECRET} does not have access"}}, token=SECRET)

    with pytest.raises(SourceUnavailableError, match="the server's credentials for gs") as refused:
        await fetch("gs://models/faq", fresh(tmp_path))

    assert f"does not let this server read {CONFIG}" in str(refused.value)
    assert SECRET not in str(refused.value)
    assert any(user == f"Bearer {SECRET}" for _, user in bucket.requests)


async def test_credentials_that_are_not_taken_are_among_the_causes_of_silence(
    bucket: Site, tmp_path: Path
) -> None:
    """The library asks again and again, longer than anybody waits."""
    bucket.answer = answering(400, {"error": "invalid_grant", "error_description": SECRET})

    with pytest.raises(SourceUnavailableError, match="sent nothing for 1 s") as refused:
        await fetch("gs://models/faq", fresh(tmp_path), timeout_s=1.0)

    assert "the server's endpoint for gs, and the server's credentials for gs" in str(refused.value)
    assert SECRET not in str(refused.value)


def fresh(tmp_path: Path) -> Path:
    into = tmp_path / "into"
    into.mkdir()
    return into
