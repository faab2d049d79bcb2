"""What the gate found: one verdict, and a line for each check."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loraplex_adapters.manifest import MANIFEST_FILE
from loraplex_trainer.judge.statistics import Verdict
from loraplex_trainer.packaging.export import canonical_json
from loraplex_trainer.packaging.manifest import file_hashes

GATE_FILE, GATE_PAGE = "gate.json", "gate.md"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that an adapter had to show."""

    name: str
    verdict: Verdict
    message: str  # what was found, and what to do where it was not enough
    measured: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GateReport:
    """The checks in the order in which they were made; after one that makes the others pointless there are no more."""

    name: str
    tenant: str
    package_digest: str  # empty where the package could not be read
    precision: str  # of the base in the engine
    device: str
    checks: tuple[Check, ...]
    verdict: Verdict
    seconds: float

    def document(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def page(self) -> str:
        """The same as a readable table."""
        rows = "\n".join(f"| {c.name} | {c.verdict} | {c.message.replace('|', '/')} |" for c in self.checks)
        return (
            f"# Gate of `{self.tenant}/{self.name}`: {self.verdict}\n\n"
            f"Package `{self.package_digest[:12]}`, engine in {self.precision} on {self.device}, "
            f"{self.seconds:.0f} s.\n\n"
            f"| check | verdict | found |\n|---|---|---|\n{rows}\n"
        )


def write_gate(report: GateReport, package: Path) -> None:
    """Put the report into the package and its verdict into the manifest. Weights and digest stay the same.

    A signature that covers the manifest must be made afterwards.
    """
    files = {GATE_FILE: canonical_json(report.document()), GATE_PAGE: report.page().encode()}
    for name, content in files.items():
        _replace(package / name, content)
    manifest = json.loads((package / MANIFEST_FILE).read_bytes())
    manifest["gate"] = {"verdict": report.verdict, "precision": report.precision, "device": report.device}
    manifest["files"] |= file_hashes(files)
    _replace(package / MANIFEST_FILE, canonical_json(manifest))


def read_gate(package: Path) -> dict[str, Any] | None:
    """The report in a package; None where there is none that can be read."""
    try:
        content: dict[str, Any] = json.loads((package / GATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _replace(path: Path, content: bytes) -> None:
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_bytes(content)
    scratch.replace(path)
