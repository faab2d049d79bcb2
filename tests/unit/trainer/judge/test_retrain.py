"""The shipped domains are made again with one call; here with three tiny ones in their place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loraplex_adapters.package import read_package
from loraplex_trainer.domains.files import DOMAINS
from loraplex_trainer.domains.retrain import main
from loraplex_trainer.packaging.validate import validate

from .conftest import write_colour_recipe

pytestmark = pytest.mark.slow


def test_retraining_writes_a_sound_package_and_its_report(tiny_base: Path, tmp_path: Path) -> None:
    for name in DOMAINS:
        (tmp_path / "adapters" / name).mkdir(parents=True)
        write_colour_recipe(
            tmp_path / "adapters" / name,
            tiny_base,
            name=name,
            train={"epochs": {"min": 1, "max": 1}},
            samples={"n": 0},
        )

    main(
        [
            *("finance", "--method", "lora", "--output", str(tmp_path / "made"), "--base", str(tiny_base)),
            *("--adapters", str(tmp_path / "adapters"), "--precision", "fp32", "int8"),
        ]
    )

    package = tmp_path / "made/finance/lora"
    report = json.loads((tmp_path / "made/finance/reports/lora.json").read_text())
    assert validate(package, tiny_base).digest == read_package(package).digest == report["package_digest"]
    assert report["domain_adapter"]["n"] == 1
    assert report["leak_other_domains"].keys() == {"ecommerce", "education"}
    assert report["other_precisions"].keys() == {"int8"}
    assert report["planned_memory_bytes"] > 0
    assert json.loads((package / "manifest.json").read_text())["metrics"]["precision"] == "fp32"
    assert (tmp_path / "made/finance/reports/lora.html").read_text().startswith("<!doctype html>")
