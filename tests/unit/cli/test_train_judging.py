"""`loraplex train eval|gate|package|merge|register`: exit codes and documents, not what they measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.main import app
from loraplex_trainer.judge import gate as gate_module
from loraplex_trainer.judge.gate_report import Check, GateReport
from tests.integration.tiny_base import save_tiny_base

RECIPE = "name: faq\nsystem: Be brief.\nbase: {model: BASE}\ndata: {sources: [{path: rows.jsonl}]}\n"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def document(result: Result) -> Any:
    (line,) = result.stdout.splitlines()
    return json.loads(line)


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def recipe(tiny_base: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("BASE", str(tiny_base)))
    return path


@pytest.mark.parametrize(
    ("verdict", "exit_code"),
    [("pass", ExitCode.OK), ("fail", ExitCode.WRONG_RESULT), ("inconclusive", ExitCode.INCONCLUSIVE)],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_the_exit_code_of_the_gate_is_its_verdict(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, verdict: Any, exit_code: ExitCode, as_json: bool
) -> None:
    report = GateReport(
        "faq", "default", "d" * 64, "fp32", "cpu", (Check("loads", verdict, "it does", {}),), verdict, 1.0
    )
    asked: dict[str, Any] = {}

    def run_gate(package: Path, *_: Any, **options: Any) -> GateReport:
        asked.update(options, package=package)
        return report

    monkeypatch.setattr(gate_module, "run_gate", run_gate)
    (recipe.parent / "package").mkdir()

    result = invoke(
        "gate", recipe, "--precision", "fp32", "--beside", "other", *(["--json"] if as_json else [])
    )

    assert result.exit_code == exit_code
    assert (asked["package"], asked["precision"]) == (recipe.parent / "package", "fp32")
    assert asked["others"] == [Path("other")]
    if as_json:
        assert document(result)["verdict"] == verdict
    else:
        assert result.stdout.splitlines()[0] == verdict
        assert "it does" in result.stdout


@pytest.mark.parametrize("judge", ["eval", "gate"])
def test_a_package_that_is_missing_is_bad_input_and_no_verdict(recipe: Path, judge: str) -> None:
    (recipe.parent / "eval.jsonl").write_text("")
    result = invoke(judge, recipe, "--package", recipe.parent / "nothing", "--json")

    assert result.exit_code == ExitCode.BAD_INPUT
    assert document(result)["error"]["reason"] == "ADAPTER_INVALID"
    assert "train package" in document(result)["error"]["message"]


@pytest.mark.parametrize("judge", ["eval", "gate"])
def test_a_run_is_not_judged_by_another_domains_recipe(recipe: Path, judge: str, tmp_path: Path) -> None:
    """Its own questions are named `eval.jsonl` like the other's, and would be taken from beside the other recipe."""
    run = tmp_path / "run"
    (run / "package").mkdir(parents=True)
    (run / "recipe.yaml").write_text(recipe.read_text().replace("name: faq", "name: bank"))

    result = invoke(judge, recipe, "--run", run, "--json")

    assert result.exit_code == ExitCode.BAD_INPUT
    assert "trained default/bank" in document(result)["error"]["message"]


def test_a_run_that_is_missing_is_bad_input(tmp_path: Path) -> None:
    result = invoke("package", tmp_path / "nothing", "--json")

    assert result.exit_code == ExitCode.BAD_INPUT
    assert "RECIPE_INVALID" in result.stdout or "RUN_FOLDER_INVALID" in result.stdout


def test_registering_without_a_gate_is_refused_before_a_server_is_asked(
    package_folder: Path,
) -> None:
    result = invoke("register", package_folder, "finance/faq", "--server", "127.0.0.1:1", "--json")

    assert result.exit_code == ExitCode.BAD_INPUT
    assert document(result)["error"]["reason"] == "GATE_NOT_PASSED"


def test_a_forced_registration_needs_a_server(package_folder: Path) -> None:
    result = invoke(
        "register", package_folder, "finance/faq", "--force", "--server", "127.0.0.1:1", "--timeout", "1"
    )

    assert result.exit_code == ExitCode.UNREACHABLE


def test_merging_over_an_existing_folder_is_bad_input(
    package_folder: Path, tiny_base: Path, tmp_path: Path
) -> None:
    result = invoke("merge", package_folder, "--base", tiny_base, "--output", tmp_path, "--json")

    assert result.exit_code == ExitCode.BAD_INPUT
    assert document(result)["error"]["reason"] == "MERGE_REFUSED"


def test_variants_that_are_no_pair_are_bad_input(recipe: Path, tmp_path: Path) -> None:
    result = invoke("compare", "lora", "clean", recipe, "--output", tmp_path / "runs", "--json")

    assert result.exit_code == ExitCode.BAD_INPUT
    assert document(result)["error"]["reason"] == "RECIPE_INVALID"


@pytest.fixture
def package_folder() -> Path:
    """A shipped package: sound, and without a gate's report."""
    return Path(__file__).parents[3] / "adapters/finance/package"
