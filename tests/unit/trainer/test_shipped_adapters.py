from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from loraplex_adapters.manifest import check_files, read_manifest
from loraplex_adapters.package import read_package
from loraplex_trainer.domains.files import DOMAINS
from loraplex_trainer.judge.compare import variant_of
from loraplex_trainer.recipe.document import read_recipe

SHIPPED = Path(__file__).parents[3] / "adapters"
METHODS = ("lora", "qlora")
_MIB = 2**20

each_domain = pytest.mark.parametrize("name", sorted(DOMAINS))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def report_of(name: str, method: str) -> Any:
    return read_json(SHIPPED / name / "reports" / f"{method}.json")


@each_domain
def test_each_package_is_sound_and_small(name: str) -> None:
    package = read_package(SHIPPED / name / "package")
    names = {path.name for path in package.folder.iterdir()}

    assert package.config.rank <= 8
    assert package.size_bytes <= 5 * _MIB
    assert {"adapter_config.json", "adapter_model.safetensors", "manifest.json"} <= names
    assert names <= {
        "adapter_config.json", "adapter_model.safetensors", "manifest.json", "eval.json", "gate.json", "gate.md",
        "report.md", "samples.jsonl", "LICENCES.md",
    }  # fmt: skip


def test_the_packages_are_three_different_adapters_on_one_base() -> None:
    digests = {read_package(SHIPPED / name / "package").digest for name in DOMAINS}
    bases = {read_json(SHIPPED / name / "package/manifest.json")["base"]["fingerprint"] for name in DOMAINS}

    assert len(digests) == 3
    assert len(bases) == 1


@each_domain
def test_each_package_was_made_by_the_recipe_and_data_beside_it(name: str) -> None:
    folder = SHIPPED / name
    manifest = read_json(folder / "package/manifest.json")
    recipe = read_recipe(folder / "recipe.yaml")

    assert recipe.system == DOMAINS[name].system
    assert manifest["system_sha256"] == hashlib.sha256(recipe.system.encode()).hexdigest()
    assert manifest["training"]["seed"] == recipe.train.seed
    assert manifest["recipe_sha256"] == variant_of(recipe, "lora").sha256()
    assert manifest["data"]["num_train"] + manifest["data"]["num_val"] >= 882
    for file, digest in manifest["files"].items():
        assert hashlib.sha256((folder / "package" / file).read_bytes()).hexdigest() == digest


@each_domain
def test_each_manifest_is_one_that_the_server_takes(name: str) -> None:
    folder = SHIPPED / name / "package"
    manifest = read_manifest(folder)

    assert manifest is not None
    check_files(manifest, folder)
    assert manifest.name == name
    assert manifest.template_sha256


@each_domain
def test_the_reports_are_of_the_package_and_of_the_recipe_as_it_is(name: str) -> None:
    recipe = read_recipe(SHIPPED / name / "recipe.yaml")

    assert report_of(name, "lora")["package_digest"] == read_package(SHIPPED / name / "package").digest
    for method in METHODS:
        report = report_of(name, method)
        assert report["recipe_sha256"] == variant_of(recipe, method).sha256()
        assert "<svg" in (SHIPPED / name / "reports" / f"{method}.html").read_text(encoding="utf-8")


@each_domain
@pytest.mark.parametrize("method", METHODS)
def test_the_measured_adapter_meets_the_goals(name: str, method: str) -> None:
    report = report_of(name, method)

    assert report["domain_adapter"]["value"] >= 0.80
    assert report["domain_base"]["value"] <= 0.15
    assert report["domain_change"]["points"] >= 70
    assert report["domain_adapter"]["n"] == len((SHIPPED / name / "eval.jsonl").read_text().splitlines())
    assert sorted(report["leak_other_domains"]) == sorted(set(DOMAINS) - {name})
    assert all(leak["value"] <= 0.02 for leak in report["leak_other_domains"].values())
    assert report["general_change"]["points"] >= -2
    assert abs(report["peak_memory_bytes"] / report["planned_memory_bytes"] - 1) <= 0.25


@each_domain
def test_qlora_knows_what_lora_knows_but_for_three_points(name: str) -> None:
    lora, qlora = (report_of(name, method)["domain_adapter"]["value"] for method in METHODS)

    assert qlora >= lora - 0.03
