"""A small complete base folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.complete_base import write_complete_base


@pytest.fixture(scope="session")
def complete_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only; copy it to change it."""
    return write_complete_base(tmp_path_factory.mktemp("complete-base"))
