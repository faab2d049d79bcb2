"""A headless browser that opens a file and is asked about it, over its own debugging protocol."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_START_TIMEOUT_S = 60.0


def find_browser() -> str | None:
    """None where this machine has none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Page:
    """An open page."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._last_id = 0

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def call(self, method: str, **parameters: Any) -> Any:
        """One command of the protocol; events in between are passed over."""
        self._last_id += 1
        self._socket.send(json.dumps({"id": self._last_id, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._last_id:
                assert "error" not in message, message
                return message["result"]


@contextmanager
def open_page(browser: str, file: Path, profile: Path) -> Iterator[Page]:
    """The file, loaded; the browser has no network but this machine's."""
    command = [
        browser,
        "--headless",
        "--no-sandbox",  # containers run as root
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--remote-debugging-port=0",
        "--remote-allow-origins=*",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={profile}",
        file.as_uri(),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port, _ = _await_text(profile / "DevToolsActivePort").split()
        socket = websocket.create_connection(_page_address(int(port)), timeout=_START_TIMEOUT_S)
        try:
            page = Page(socket)
            _await_loaded(page)
            yield page
        finally:
            socket.close()
    finally:
        process.terminate()
        process.wait(_START_TIMEOUT_S)


def _await_loaded(page: Page) -> None:
    """A new tab is an empty page first, and that one is complete too."""
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while not page.evaluate("location.protocol === 'file:' && document.readyState === 'complete'"):
        assert time.monotonic() < deadline_s, "the browser did not load the page"
        time.sleep(0.05)


def _page_address(port: int) -> str:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as response:
            for entry in json.load(response):
                if entry["type"] == "page" and entry["url"].startswith("file:"):
                    return str(entry["webSocketDebuggerUrl"])
        time.sleep(0.05)
    raise AssertionError("the browser opened no page")


def _await_text(file: Path) -> str:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if file.exists() and len(text := file.read_text().split("\n")) > 1:
            return "\n".join(text)
        time.sleep(0.05)
    raise AssertionError("the browser did not start")
