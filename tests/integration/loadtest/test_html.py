"""The report in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loraplex_loadtest.reports.html import run_page
from loraplex_loadtest.result import result_document
from tests.integration.loadtest.browser import find_browser, open_page
from tests.integration.loadtest.conftest import RunOnFake

BROWSER = find_browser()


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no headless browser on this machine")
def test_the_report_opens_offline_with_all_its_plots(run_on_fake: RunOnFake, tmp_path: Path) -> None:
    assert BROWSER is not None
    page_file = tmp_path / "report.html"
    outcome = run_on_fake(disturbances=[{"kind": "reopen_connections", "at_s": 0.2}])
    page_file.write_text(run_page(result_document(outcome)), encoding="utf-8")

    with open_page(BROWSER, page_file, tmp_path / "profile") as page:
        plots: list[Any] = page.evaluate(
            "[...document.querySelectorAll('svg')].map(one => {"
            " const box = one.getBoundingClientRect();"
            " return [box.width, box.height, one.querySelectorAll('path').length] })"
        )
        fetched = page.evaluate("performance.getEntriesByType('resource').map(one => one.name)")
        headings = page.evaluate("[...document.querySelectorAll('h2')].map(one => one.textContent)")
        text = page.evaluate("document.body.innerText")

    assert len(plots) == 4
    assert all(width > 300 and height > 50 and paths > 5 for width, height, paths in plots)
    assert fetched == []
    assert {"Latency", "Over time", "Adapters", "Server counters"} <= set(headings)
    assert "reopen_connections" in text
