"""URL sources: a real HTTP server, real files, and a file system of fsspec in memory."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
import pytest

from loraplex_adapters.errors import AdapterInvalidError, InvalidRequestError, SourceUnavailableError
from loraplex_adapters.package import read_package
from loraplex_server.admission.http_source import is_public
from loraplex_server.admission.sources import confined, fetch_url
from loraplex_server.admission.url_policy import DEFAULT_SCHEMES, UrlPolicy, source_label
from tests.unit.admission.packages import CONFIG, MANIFEST, WEIGHTS, write_manifest, write_package

Answer = Callable[[BaseHTTPRequestHandler], None]
_ALL = DEFAULT_SCHEMES | {"memory"}
_LIMIT = 10**6


class Site:
    """An HTTP server on this machine that gives out a folder, unless told to answer otherwise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answer: Answer | None = None
        self.requests: list[tuple[str, str]] = []  # (path with query, Authorization)
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.requests.append((self.path, self.headers.get("Authorization", "")))
                if site.answer is not None:
                    site.answer(self)
                else:
                    site.give_out(self)

            do_POST = do_GET

            def log_message(self, format: str, *args: object) -> None:
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()

    def give_out(self, handler: BaseHTTPRequestHandler) -> None:
        path = self.folder / urlsplit(handler.path).path.rsplit("/", 1)[-1]
        if not path.is_file():
            handler.send_error(404)
            return
        content = path.read_bytes()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def site(package: Path) -> Iterator[Site]:
    site = Site(package)
    yield site
    site.close()


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


async def fetch(
    url: str,
    into: Path,
    *,
    schemes: frozenset[str] = _ALL,
    prefixes: tuple[str, ...] = (),
    roots: tuple[Path, ...] = (),
    max_bytes: int = _LIMIT,
    timeout_s: float = 30.0,
    private: bool = True,
) -> None:
    policy = UrlPolicy(schemes, prefixes)
    await fetch_url(url, into, policy, roots, max_bytes, timeout_s, allow_private_hosts=private)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_http_gives_the_package_and_nothing_else(site: Site, package: Path, into: Path) -> None:
    (write_manifest(package) / "training_args.bin").write_bytes(b"never read")

    await fetch(f"{site.url}/adapters/faq/", into)

    assert names(into) == [CONFIG, WEIGHTS, MANIFEST]
    assert read_package(into).digest == read_package(package).digest
    assert site.requests[0][0] == f"/adapters/faq/{CONFIG}"


async def test_query_and_user_go_to_every_file_and_into_no_label(site: Site, into: Path) -> None:
    url = site.url.replace("http://", "http://ann:p%40ss@") + "/faq?token=secret#part"

    await fetch(url, into)

    credentials = "Basic " + base64.b64encode(b"ann:p@ss").decode()
    assert all(path.endswith("?token=secret") and user == credentials for path, user in site.requests)
    assert source_label(url) == f"{site.url}/faq"


async def test_no_secret_of_the_url_is_in_a_message(
    site: Site, into: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site.answer = lambda handler: handler.send_error(500)

    with pytest.raises(SourceUnavailableError) as failed:
        await fetch(site.url.replace("http://", "http://ann:hunter2@") + "/secret-path?token=secret", into)

    for text in (str(failed.value), caplog.text):
        assert not any(word in text for word in ("hunter2", "secret", "127.0.0.1"))


@pytest.mark.parametrize(
    ("status", "message"), [(404, "has no"), (403, "does not let"), (503, "cannot be read")]
)
async def test_what_http_does_not_give_is_unavailable(
    site: Site, into: Path, status: int, message: str
) -> None:
    site.answer = lambda handler: handler.send_error(status)

    with pytest.raises(SourceUnavailableError, match=message):
        await fetch(site.url, into)


async def test_a_host_that_does_not_answer_is_unavailable(site: Site, into: Path) -> None:
    site.close()

    with pytest.raises(SourceUnavailableError):
        await fetch(site.url, into)


def endless(handler: BaseHTTPRequestHandler) -> None:
    """Claims ten bytes, and never ends."""
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(bytes(65536))
    except OSError:
        return


async def test_a_source_that_never_ends_is_cut_at_its_budget(site: Site, into: Path) -> None:
    site.answer = endless

    with pytest.raises(AdapterInvalidError, match="more than 300000 bytes"):
        await fetch(site.url, into, max_bytes=300_000)

    assert (into / CONFIG).stat().st_size <= 300_000


async def test_the_budget_is_of_all_files_together(site: Site, package: Path, into: Path) -> None:
    size = (package / WEIGHTS).stat().st_size + (package / CONFIG).stat().st_size

    with pytest.raises(AdapterInvalidError, match="more than"):
        await fetch(site.url, into, max_bytes=size - 1)
    await fetch(site.url, fresh(into), max_bytes=size)


def fresh(into: Path) -> Path:
    other = into.with_name("again")
    other.mkdir()
    return other


class Silence:
    """Sends a part of a body, then nothing until it is told to end."""

    def __init__(self) -> None:
        self.begun, self.ended = threading.Event(), threading.Event()

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"{")
        self.begun.set()
        self.ended.wait(60)


async def test_a_source_that_falls_silent_is_given_up(site: Site, into: Path) -> None:
    site.answer = silence = Silence()

    with pytest.raises(SourceUnavailableError):
        await fetch(site.url, into, timeout_s=0.2)
    silence.ended.set()


async def test_a_fetch_can_be_cancelled_while_nothing_comes(site: Site, into: Path) -> None:
    site.answer = silence = Silence()
    task = asyncio.create_task(fetch(site.url, into, timeout_s=60.0))
    await asyncio.to_thread(silence.begun.wait, 60)

    begin = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - begin < 30.0
    silence.ended.set()


def redirect_to(url: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", url)
        handler.end_headers()

    return answer


async def test_a_redirect_within_the_host_is_followed(site: Site, into: Path) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path.startswith("/old/"):
            redirect_to(handler.path.replace("/old/", "/new/"))(handler)
        else:
            site.give_out(handler)

    site.answer = answer

    await fetch(f"{site.url}/old/faq", into)

    assert names(into) == [CONFIG, WEIGHTS]


async def test_a_redirect_elsewhere_is_not_followed(site: Site, package: Path, into: Path) -> None:
    other = Site(package)
    for target in (
        other.url,
        site.url.replace("127.0.0.1", "localhost"),
        "file:///etc/passwd",
        "ftp://x/",
        "//[",
    ):
        site.answer = redirect_to(target)
        with pytest.raises(SourceUnavailableError):
            await fetch(site.url, into)
    other.close()

    assert other.requests == []


async def test_redirects_without_end_are_given_up(site: Site, into: Path) -> None:
    site.answer = lambda handler: redirect_to(handler.path + "x")(handler)

    with pytest.raises(SourceUnavailableError):
        await fetch(site.url, into)
    assert len(site.requests) < 20


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1"])
async def test_a_private_address_is_refused_however_it_is_written(site: Site, into: Path, host: str) -> None:
    with pytest.raises(SourceUnavailableError, match=r"private address|cannot be re"):
        await fetch(site.url.replace("127.0.0.1", host), into, private=False)

    assert site.requests == []


@pytest.mark.parametrize(
    "address",
    [
        *("10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "127.9.9.9", "169.254.169.254", "0.0.0.0"),
        *("224.0.0.1", "255.255.255.255", "240.0.0.1", "::1", "::", "fe80::1", "fd00::1", "ff02::1"),
        *("::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "2001:0:a00:1::", "fe80::1%eth0"),
    ],
)
def test_addresses_that_only_the_server_reaches_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_of_the_open_internet_are_public(address: str) -> None:
    assert is_public(address)


async def test_a_file_url_is_confined_to_the_roots(package: Path, tmp_path: Path, into: Path) -> None:
    elsewhere = write_package(tmp_path / "else where")

    await fetch(package.as_uri(), into, roots=(package,))
    await fetch(elsewhere.as_uri(), fresh(into), roots=(elsewhere,))
    with pytest.raises(InvalidRequestError, match="url: must be an absolute path") as refused:
        await fetch(elsewhere.as_uri(), into, roots=(package,))

    assert read_package(into).digest == read_package(package).digest
    assert str(tmp_path) not in str(refused.value)


async def test_a_link_in_a_file_url_is_not_followed_out_of_its_folder(
    package: Path, tmp_path: Path, into: Path
) -> None:
    (package / MANIFEST).symlink_to(write_manifest(write_package(tmp_path / "other")) / MANIFEST)

    with pytest.raises(AdapterInvalidError, match="link"):
        await fetch(package.as_uri(), into, roots=(package,))


async def test_any_file_system_of_fsspec_that_is_allowed_will_do(package: Path, into: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(package), "/adapters/faq", recursive=True)

    await fetch("memory://adapters/faq", into)
    with pytest.raises(SourceUnavailableError, match=f"has no {CONFIG}"):
        await fetch("memory://adapters/nothing", fresh(into))
    with pytest.raises(InvalidRequestError, match="schemes file, gcs"):
        await fetch("memory://adapters/faq", into, schemes=DEFAULT_SCHEMES)
    memory.rm("/adapters", recursive=True)

    assert read_package(into).digest == read_package(package).digest


async def test_a_missing_backend_is_named(into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(scheme: str) -> None:
        raise ImportError

    monkeypatch.setattr(fsspec, "filesystem", missing)

    for scheme, package in (("s3", "s3fs"), ("gs", "gcsfs")):
        with pytest.raises(SourceUnavailableError, match=f"Python package {package}"):
            await fetch(f"{scheme}://bucket/faq", into)


@pytest.mark.parametrize(
    "url",
    [
        *("", "faq", "/adapters/faq", "ftp://host/faq", "javascript:alert(1)", "http://", "https:///faq"),
        *("memory::http://127.0.0.1/", "zip://x::file:///etc", "simplecache::s3://b/faq"),
        *("s3://key:secret@bucket/faq", "s3://bucket/faq?versionId=1", "memory://faq#x"),
        *("file://host/etc", "file:relative", "file:///etc", "http://[::1", "http://host:99999/"),
        *("http://host/a b", "http://host/\n", "http://host/" + "x" * 3000),
    ],
)
async def test_a_url_that_is_not_allowed_is_an_invalid_request(into: Path, url: str) -> None:
    with pytest.raises(InvalidRequestError, match="url:") as refused:
        await fetch(url, into)

    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "label"),
    [
        ("s3://key:secret@bucket/faq?x=1", "s3://bucket/faq"),
        ("https://user@Host.example:8443/a#b", "https://host.example:8443/a"),
        ("file:///adapters/faq", "file:///adapters/faq"),
        ("http://[::1", "url"),
        ("http://h/" + "x" * 5000, "http://h/" + "x" * 503),
    ],
)
def test_a_label_shows_where_and_no_secret(url: str, label: str) -> None:
    assert source_label(url) == label


def test_a_path_is_confined_to_the_roots(package: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(package)
    root = tmp_path / "package"

    assert confined(str(package), [root]) == package.resolve()
    assert confined(str(tmp_path / "link"), [root]) == package.resolve()
    for path in (
        "package",
        str(tmp_path),
        f"{package}/../..",
        str(package / CONFIG),
        str(package / "no"),
        "a\0b",
        "",
    ):
        with pytest.raises(InvalidRequestError, match="path: must be an absolute path"):
            confined(path, [root])
    with pytest.raises(InvalidRequestError):
        confined(str(package), [])
