"""A trained package on its way into a running server: as a candidate, and only with a passed gate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraplex_adapters.package import WEIGHTS_FILE, read_package
from loraplex_client import LoraplexClient, NotFoundError
from loraplex_client.errors import LoraplexApiError
from loraplex_trainer.errors import GateNotPassedError
from loraplex_trainer.packaging.export import canonical_json
from loraplex_trainer.packaging.manifest import Origin
from loraplex_trainer.packaging.package import write_package
from loraplex_trainer.packaging.register import register
from loraplex_trainer.recipe.document import parse_recipe
from tests.integration.conftest import NewAdapter
from tests.integration.live_server import LiveServer

NAME = "paint/candidates"


@pytest.fixture
def package(new_adapter: NewAdapter, tiny_base: Path, tmp_path: Path) -> Path:
    return _package(new_adapter("candidates-source"), tiny_base, tmp_path / "package")


@pytest.fixture(autouse=True)
def _leaves_nothing(client: LoraplexClient) -> Iterator[None]:
    yield
    for adapter in client.adapters.list():
        if adapter.name == NAME:
            client.adapters.delete(NAME)


def _package(peft_folder: Path, base: Path, folder: Path) -> Path:
    recipe = parse_recipe(
        {"name": "candidates", "system": "Be brief.", "data": {"sources": [{"path": "none.jsonl"}]}}, "test"
    )
    return write_package(folder, peft_folder, Origin(recipe=recipe, resolved=recipe, base_folder=base))


def pass_gate(package: Path, **changes: Any) -> None:
    """As the gate leaves a package that it passed."""
    report = {"verdict": "pass", "package_digest": read_package(package).digest, "checks": [], **changes}
    (package / "gate.json").write_bytes(canonical_json(report))


def test_a_package_that_passed_its_gate_becomes_a_candidate(
    server: LiveServer, client: LoraplexClient, package: Path
) -> None:
    pass_gate(package)

    made = register(package, server.target, NAME)

    assert made.version.digest == read_package(package).digest
    adapter = client.adapters.get(NAME)
    assert adapter.aliases["candidate"] == made.version.digest
    answer = client.generate("The quick", adapter=f"{NAME}@candidate", max_tokens=4, temperature=0)
    assert answer.adapter_digest == made.version.digest


def test_a_new_candidate_moves_no_other_alias(
    server: LiveServer,
    client: LoraplexClient,
    package: Path,
    new_adapter: NewAdapter,
    tiny_base: Path,
    tmp_path: Path,
) -> None:
    pass_gate(package)
    first = register(package, server.target, NAME).version.digest
    newer = _package(new_adapter("candidates-newer"), tiny_base, tmp_path / "newer")
    pass_gate(newer)

    second = register(newer, server.target, NAME).version.digest

    assert client.adapters.get(NAME).aliases == {"stable": first, "candidate": second}


def test_without_a_passed_gate_nothing_is_sent_unless_forced(
    server: LiveServer, client: LoraplexClient, package: Path
) -> None:
    with pytest.raises(GateNotPassedError, match="train gate"):
        register(package, server.target, NAME)
    with pytest.raises(NotFoundError):
        client.adapters.get(NAME)

    assert register(package, server.target, NAME, force=True).version.digest


@pytest.mark.parametrize("fault", ["another base", "another template", "does nothing"])
def test_what_the_server_refuses_leaves_nothing_behind(
    server: LiveServer, client: LoraplexClient, package: Path, fault: str
) -> None:
    manifest = json.loads((package / "manifest.json").read_text())
    if fault == "does nothing":
        weights = load_file(package / WEIGHTS_FILE)
        silent = {key: torch.zeros_like(w) if "lora_B" in key else w for key, w in weights.items()}
        save_file(silent, package / WEIGHTS_FILE, metadata={"format": "pt"})
        (package / "manifest.json").unlink()
    else:
        manifest["base"]["fingerprint" if fault == "another base" else "template_sha256"] = "0" * 64
        (package / "manifest.json").write_bytes(canonical_json(manifest))
    pass_gate(package)

    with pytest.raises(LoraplexApiError) as refusal:
        register(package, server.target, NAME)

    assert refusal.value.reason == ("NO_EFFECT" if fault == "does nothing" else "BASE_MISMATCH")
    with pytest.raises(NotFoundError):
        client.adapters.get(NAME)
