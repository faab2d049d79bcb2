"""Every test that the pages on training name exists, and every row has one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("training*.md"))
TESTS = {
    name
    for file in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"def (test_\w+)", file.read_text())
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(r"\b(test_\w+)(?!\.py|\w)(\*?)", page.read_text())
    missing = [
        name
        for name, is_pattern in named
        if name not in TESTS and not (is_pattern and any(test.startswith(name) for test in TESTS))
    ]

    assert missing == []


def test_every_row_has_a_test() -> None:
    tables = "\n".join(
        line for page in PAGES for line in page.read_text().splitlines() if line.startswith("| ")
    )
    held = [line for line in tables.splitlines() if "test_" in line]
    rows = {row for line in held for row in re.findall(r"\b[MD]\d\d\b", line.split("|")[1])}

    claims = {"M10"}  # of others, not repeated
    assert {f"M{n:02}" for n in range(1, 35)} | {f"D{n:02}" for n in range(1, 14)} == rows | claims
