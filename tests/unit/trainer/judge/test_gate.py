"""The gate on the tiny base, through a real engine process wherever the package is sound."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraplex_adapters.package import WEIGHTS_FILE, read_package
from loraplex_trainer.errors import GateNotPassedError, TrainingDataError
from loraplex_trainer.judge.gate import run_gate
from loraplex_trainer.judge.gate_report import GateReport
from loraplex_trainer.packaging.export import canonical_json
from loraplex_trainer.packaging.manifest import file_hashes
from loraplex_trainer.packaging.package import package_run
from loraplex_trainer.packaging.register import require_passed_gate
from loraplex_trainer.packaging.validate import validate
from loraplex_trainer.recipe.document import Recipe
from loraplex_trainer.train.run_folder import RunFolder

from .conftest import question, write_lines

Judge = Callable[..., GateReport]


@pytest.fixture
def judge(recipe: Recipe, recipe_file: Path, tiny_base: Path) -> Judge:
    """Run the gate; `changes` replace sections of the recipe's gate and evaluation."""

    def run_it(
        package: Path,
        others: tuple[Path, ...] = (),
        precision: Any = "fp32",
        base: Path | None = None,
        **changes: Any,
    ) -> GateReport:
        judged = recipe.model_copy(
            update={
                # Twelve general questions cannot tell a drop of 2 points.
                "gate": recipe.gate.model_copy(update={"max_general_drop": 100.0, **changes}),
            }
        )
        return run_gate(
            package, judged, recipe_file.parent, base or tiny_base, others=others, precision=precision
        )

    return run_it


def verdicts(report: GateReport) -> dict[str, str]:
    return {check.name: check.verdict for check in report.checks}


def rewrite_weights(package: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    """Change the weights of a package, and let its manifest tell of the new ones."""
    weights = {key: change(key, tensor) for key, tensor in load_file(package / WEIGHTS_FILE).items()}
    save_file(weights, package / WEIGHTS_FILE, metadata={"format": "pt"})
    manifest = json.loads((package / "manifest.json").read_text())
    manifest["files"] |= file_hashes({WEIGHTS_FILE: (package / WEIGHTS_FILE).read_bytes()})
    (package / "manifest.json").write_bytes(canonical_json(manifest))


@pytest.fixture(scope="module")
def passed(
    run: RunFolder,
    recipe: Recipe,
    recipe_file: Path,
    tiny_base: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, GateReport]:
    """A package that went through the gate beside another one, and the report."""
    root = tmp_path_factory.mktemp("gate")
    package = package_run(run, tiny_base, root / "colours" / "package")
    other = package_run(run, tiny_base, root / "other" / "package")
    rewrite_weights(other, lambda key, weight: weight * 0.5)
    judged = recipe.model_copy(update={"gate": recipe.gate.model_copy(update={"max_general_drop": 100.0})})
    report = run_gate(package, judged, recipe_file.parent, tiny_base, others=[other], precision="fp32")
    return package, report


@pytest.mark.slow
def test_a_trained_adapter_passes_every_check_of_the_gate(passed: tuple[Path, GateReport]) -> None:
    _, report = passed

    assert verdicts(report) == dict.fromkeys(
        [
            "valid",
            "loads",
            "differs_from_base",
            "served_equals_trained",
            "others_unchanged",
            "domain_gain",
            "general_drop",
            "ends_by_itself",
            "sound_answers",
            "no_personal_data",
        ],
        "pass",
    )
    assert report.verdict == "pass"
    assert (report.precision, report.device) == ("fp32", "cpu")
    measured = {check.name: check.measured for check in report.checks}
    assert measured["served_equals_trained"]["largest"] < 1e-4
    assert measured["others_unchanged"]["asked"] == ["other", "the base"]
    assert (measured["domain_gain"]["gained"], measured["domain_gain"]["lost"]) == (8, 0)


@pytest.mark.slow
def test_the_verdict_lies_in_the_package_which_stays_what_it_was(
    passed: tuple[Path, GateReport], tiny_base: Path
) -> None:
    package, report = passed

    admitted = validate(package, tiny_base)  # files and hashes still belong together
    assert admitted.digest == report.package_digest
    written = json.loads((package / "gate.json").read_text())
    assert written == json.loads(canonical_json(report.document()))
    manifest = json.loads((package / "manifest.json").read_text())
    assert manifest["gate"] == {"verdict": "pass", "precision": "fp32", "device": "cpu"}
    page = (package / "gate.md").read_text()
    assert page.startswith("# Gate of `paint/colours`: pass")
    assert all(f"| {check.name} | pass |" in page for check in report.checks)
    require_passed_gate(package, report.package_digest)


@pytest.mark.slow
def test_a_passed_gate_is_of_its_own_weights_alone(passed: tuple[Path, GateReport], tmp_path: Path) -> None:
    package = Path(shutil.copytree(passed[0], tmp_path / "package"))
    rewrite_weights(package, lambda key, weight: weight * 2)

    with pytest.raises(GateNotPassedError, match="other weights"):
        require_passed_gate(package, read_package(package).digest)


@pytest.mark.slow
def test_an_adapter_that_does_nothing_fails_and_nothing_more_is_asked(package: Path, judge: Judge) -> None:
    rewrite_weights(package, lambda key, weight: torch.zeros_like(weight) if "lora_B" in key else weight)

    report = judge(package)

    assert verdicts(report) == {"valid": "pass", "loads": "pass", "differs_from_base": "fail"}
    assert report.verdict == "fail"
    assert "golden prompts" in report.checks[-1].message


@pytest.mark.slow
def test_the_gate_serves_in_the_precision_that_is_asked_for(package: Path, judge: Judge) -> None:
    report = judge(package, precision="int8")

    assert report.precision == "int8"
    (parity,) = (check for check in report.checks if check.name == "served_equals_trained")
    assert parity.verdict == "pass"
    assert parity.measured["largest"] > 1e-3  # it was not fp32 that served


@pytest.mark.slow
def test_too_few_questions_leave_the_verdict_open(
    package: Path, recipe: Recipe, tiny_base: Path, tmp_path: Path
) -> None:
    write_lines(tmp_path / "eval.jsonl", [question("red"), question("grey")])

    report = run_gate(package, recipe, tmp_path, tiny_base, precision="fp32")

    found = verdicts(report)
    assert found["domain_gain"] == found["general_drop"] == report.verdict == "inconclusive"


def sealed(package: Path, **base: Any) -> None:
    """Rewrite the manifest's part on the base."""
    manifest = json.loads((package / "manifest.json").read_text())
    manifest["base"] |= base
    (package / "manifest.json").write_bytes(canonical_json(manifest))


def of_another_base(package: Path) -> None:
    sealed(package, fingerprint="0" * 64)


def of_another_template(package: Path) -> None:
    sealed(package, template_sha256="0" * 64)


def not_finite(package: Path) -> None:
    rewrite_weights(package, lambda key, weight: weight * float("nan"))


def a_pickle(package: Path) -> None:
    (package / "adapter_model.bin").write_bytes(b"\x80\x04.")


def another_system_prompt(package: Path) -> None:
    manifest = json.loads((package / "manifest.json").read_text())
    (package / "manifest.json").write_bytes(canonical_json({**manifest, "system": "Be rude."}))


@pytest.mark.parametrize(
    ("spoil", "reason", "words"),
    [
        (of_another_base, "BASE_MISMATCH", "base model's weights"),
        (of_another_template, "BASE_MISMATCH", "chat template"),
        (not_finite, "NON_FINITE_WEIGHTS", "NaN"),
        (a_pickle, "UNSUPPORTED_FORMAT", "pickle"),
        (another_system_prompt, "ADAPTER_INVALID", "system"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_an_unsound_package_fails_before_an_engine_is_started(
    package: Path, judge: Judge, spoil: Callable[[Path], None], reason: str, words: str
) -> None:
    spoil(package)
    before = sorted(path.name for path in package.iterdir())

    report = judge(package)

    (check,) = report.checks
    assert (check.name, check.verdict, report.verdict) == ("valid", "fail", "fail")
    assert check.measured["reason"] == reason
    assert words in check.message
    assert sorted(path.name for path in package.iterdir()) == before  # nothing half-judged


def test_a_rank_above_the_servers_fails(
    package: Path, recipe: Recipe, recipe_file: Path, tiny_base: Path
) -> None:
    resources = recipe.resources.model_copy(update={"max_serving_rank": 4})
    narrow = recipe.model_copy(update={"resources": resources})

    report = run_gate(package, narrow, recipe_file.parent, tiny_base, precision="fp32")

    assert re.search("rank 8 is above the limit of 4", report.checks[0].message)
    assert report.verdict == "fail"


def test_a_gate_without_questions_is_refused(
    package: Path, recipe: Recipe, tmp_path: Path, tiny_base: Path
) -> None:
    nothing = recipe.model_copy(update={"eval": recipe.eval.model_copy(update={"domain": None})})

    with pytest.raises(TrainingDataError, match=r"eval\.domain"):
        run_gate(package, nothing, tmp_path, tiny_base, precision="fp32")


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (None, "not been through"),
        ("{", "not been through"),
        ({"package_digest": "0" * 64, "verdict": "pass"}, "other weights"),
        ({"verdict": "fail", "checks": [{"name": "domain_gain", "verdict": "fail"}]}, "domain_gain"),
        ({"verdict": "inconclusive", "checks": []}, "'inconclusive'"),
    ],
)
def test_what_has_not_passed_its_gate_is_not_registered(package: Path, gate: Any, words: str) -> None:
    digest = read_package(package).digest
    if gate is not None:
        content = gate if isinstance(gate, str) else json.dumps({"package_digest": digest, **gate})
        (package / "gate.json").write_text(content)

    with pytest.raises(GateNotPassedError, match=words):
        require_passed_gate(package, digest)
