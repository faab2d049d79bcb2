"""Hands a package that has passed its gate to a running server, as a candidate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from loraplex_adapters.package import read_package
from loraplex_trainer.errors import GateNotPassedError

if TYPE_CHECKING:
    from loraplex_client import RegisteredVersion

CANDIDATE = "candidate"


def register(
    package: Path,
    address: str,
    name: str,
    *,
    force: bool = False,
    timeout_s: float = 300.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> RegisteredVersion:
    """Register the package as a version of the adapter `name`, with the alias "candidate".

    No other alias moves, but that the first version of a name is its "stable" one. The server proves the package once
    more, and keeps nothing of one that it refuses.

    address  host:port
    force    register without a passed gate

    Raises GateNotPassedError, AdapterInvalidError, FileNotFoundError, and LoraplexApiError of the client.
    """
    from loraplex_client import LoraplexClient

    if not package.is_dir():
        raise FileNotFoundError(
            f"no package in '{package}'; `loraplex train package RUN_FOLDER` writes that of a finished run"
        )
    digest = read_package(package).digest
    if not force:
        require_passed_gate(package, digest)
    with LoraplexClient(address, timeout_s=timeout_s) as client:
        return client.adapters.upload(
            name,
            package,
            on_existing="add_version",
            alias=CANDIDATE,
            expected_digest=digest,
            on_progress=on_progress,
        )


def require_passed_gate(package: Path, digest: str) -> None:
    """Raises GateNotPassedError unless the package holds the report of a gate that these very weights have passed."""
    from loraplex_trainer.judge.gate_report import read_gate

    gate = read_gate(package)
    how = "run `loraplex train gate` on it, or register it with --force"
    if gate is None:
        raise GateNotPassedError(f"the package has not been through a gate; {how}")
    if gate.get("package_digest") != digest:
        raise GateNotPassedError(f"the gate judged other weights than those in the package; {how}")
    if gate.get("verdict") != "pass":
        open_checks = [
            str(check.get("name")) for check in gate.get("checks", []) if check.get("verdict") != "pass"
        ]
        raise GateNotPassedError(
            f"the gate's verdict is {gate.get('verdict')!r} ({', '.join(open_checks)}); mend that, or register it "
            "with --force"
        )
