from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loraplex_server.admission.jobs import AdmissionBudget
from loraplex_server.admission.pool import AdmissionPool
from tests.unit.admission.packages import write_package


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A sound package of one's own."""
    return write_package(tmp_path / "package")


@pytest.fixture
async def pool() -> AsyncIterator[AdmissionPool]:
    pool = AdmissionPool(AdmissionBudget())
    await pool.start()
    yield pool
    await pool.close()
