"""An S3 and a Google Cloud Storage of this machine, each in a process of its own on a free port."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlencode

BUCKET = "models"
REGION = "us-east-1"
_START_TIMEOUT_S = 120.0
_USER, _POLICY = "server", "read"
_MAY_READ = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'
_GCS_SCRIPT = """
import sys, time
from gcp_storage_emulator.server import create_server
server = create_server("127.0.0.1", 0, in_memory=True, default_bucket=sys.argv[1])
server.start()
while server._api._httpd is None:
    time.sleep(0.01)
print(f"http://127.0.0.1:{server._api._httpd.server_port}", flush=True)
sys.stdin.read()
"""


class S3Store:
    """moto's server, which asks for credentials: those of the one user, who may read as long as he is let."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._send("PUT", f"/{BUCKET}", b"", "s3")
        self._iam("CreateUser", UserName=_USER)
        answer = self._iam("CreateAccessKey", UserName=_USER)
        self.key_id, self.secret = (
            re.search(f"<{tag}>(.*?)</{tag}>", answer)[1]  # type: ignore[index]  # moto always gives both
            for tag in ("AccessKeyId", "SecretAccessKey")
        )
        self.let_read(True)

    def put(self, name: str, content: bytes) -> None:
        """As the store's owner, who needs no credentials."""
        with self._unguarded():
            self._send("PUT", f"/{BUCKET}/{quote(name)}", content, "s3")

    def get(self, name: str) -> str:
        """As the store's owner; the text of an object."""
        with self._unguarded():
            return self._send("GET", f"/{BUCKET}/{quote(name)}", None, "s3")

    def let_read(self, may_read: bool) -> None:
        """Whether the user's credentials are good for anything."""
        with self._unguarded():
            if may_read:
                self._iam("PutUserPolicy", UserName=_USER, PolicyName=_POLICY, PolicyDocument=_MAY_READ)
            else:
                self._iam("DeleteUserPolicy", UserName=_USER, PolicyName=_POLICY)

    @contextmanager
    def _unguarded(self) -> Iterator[None]:
        self._check_credentials_after("inf")
        yield
        self._check_credentials_after("0")

    def _check_credentials_after(self, num_calls: str) -> None:
        self._send("POST", "/moto-api/reset-auth", num_calls.encode(), "s3")

    def _iam(self, action: str, **fields: str) -> str:
        form = urlencode({"Action": action, "Version": "2010-05-08", **fields})
        return self._send("POST", "/", form.encode(), "iam", "application/x-www-form-urlencoded")

    def _send(
        self, method: str, path: str, body: bytes | None, service: str, content_type: str = "text/plain"
    ) -> str:
        headers = {
            "Content-Type": content_type,
            "Authorization": f"AWS4-HMAC-SHA256 Credential=owner/20260101/{REGION}/{service}/aws4_request, "
            "SignedHeaders=host, Signature=0",
        }
        request = urllib.request.Request(self.url + path, data=body, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            answer: bytes = response.read()
        return answer.decode()


class GcsStore:
    """gcp-storage-emulator, which asks nobody for credentials."""

    def __init__(self, url: str) -> None:
        self.url = url

    def put(self, name: str, content: bytes) -> None:
        query = urlencode({"uploadType": "media", "name": name})
        request = urllib.request.Request(
            f"{self.url}/upload/storage/v1/b/{BUCKET}/o?{query}",
            data=content,
            method="POST",
            headers={"Content-Type": "application/octet-stream"},
        )
        urllib.request.urlopen(request, timeout=60).close()


def put_folder(store: S3Store | GcsStore, prefix: str, folder: Path) -> None:
    """Its files as objects `prefix`/NAME."""
    for path in sorted(folder.iterdir()):
        store.put(f"{prefix}/{path.name}", path.read_bytes())


@contextmanager
def s3_store() -> Iterator[S3Store]:
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with _process(command) as url:
        yield S3Store(url)


@contextmanager
def gcs_store() -> Iterator[GcsStore]:
    with _process([sys.executable, "-c", _GCS_SCRIPT, BUCKET]) as url:
        yield GcsStore(url)


@contextmanager
def _process(command: list[str]) -> Iterator[str]:
    """The URL that the process names first. Killed at the end."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    too_late = threading.Timer(_START_TIMEOUT_S, process.kill)
    too_late.start()
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            raise AssertionError(f"{command[1:3]} did not start: {''.join(said)}")
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield found[0]
    finally:
        too_late.cancel()
        process.kill()
        process.wait()


def server_environment(s3: S3Store, gcs: GcsStore) -> dict[str, str]:
    """What an operator sets for a server that reads from both."""
    return {
        "AWS_ENDPOINT_URL": s3.url,
        "AWS_ACCESS_KEY_ID": s3.key_id,
        "AWS_SECRET_ACCESS_KEY": s3.secret,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_MAX_ATTEMPTS": "1",
        "STORAGE_EMULATOR_HOST": gcs.url,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # gRPC to Google itself
        "NO_GCE_CHECK": "true",  # no machine of Google's: nobody need be asked for its credentials
        "GOOGLE_APPLICATION_CREDENTIALS": os.devnull,
    }
