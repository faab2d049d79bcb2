from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from loraplex_adapters.compatibility import match_to_base
from loraplex_adapters.package import WEIGHTS_FILE, read_package
from loraplex_server.base.fingerprint import base_spec, tokenizer_hash
from loraplex_trainer.errors import TrainingDivergedError
from loraplex_trainer.judge.evaluate import evaluate, evaluate_recipe
from loraplex_trainer.judge.graders import EvalRow
from loraplex_trainer.train.run import TrainProgress, TrainReport, train_recipe

from .conftest import SYSTEM, TEMPLATE, write_recipe

TRAIN = {"epochs": 1, "batch_size": 2, "learning_rate": 0.01, "max_length": 160, "seed": 7}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def trained(recipe_path: Path, tiny_base: Path, tmp_path: Path) -> TrainReport:
    return train_recipe(recipe_path, tmp_path / "package", base_folder=tiny_base)


def test_the_same_seed_gives_the_same_bytes(trained: TrainReport, recipe_path: Path, tiny_base: Path) -> None:
    again = train_recipe(recipe_path, recipe_path.parent / "again", base_folder=tiny_base)
    other_recipe = write_recipe(recipe_path.parent, train={**TRAIN, "seed": 8})
    other = train_recipe(other_recipe, recipe_path.parent / "other", base_folder=tiny_base)

    weights = [(report.package / WEIGHTS_FILE).read_bytes() for report in (trained, again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_the_package_is_servable_on_its_base(trained: TrainReport, tiny_base: Path) -> None:
    package = read_package(trained.package)
    plan = match_to_base(package, base_spec(tiny_base), max_rank=8)

    assert len(plan.modules) == 2 * 7
    assert {module.scaling for module in plan.modules} == {2.0}


def test_the_package_holds_three_files_and_no_path_of_this_machine(
    trained: TrainReport, tiny_base: Path, tmp_path: Path
) -> None:
    names = sorted(path.name for path in trained.package.iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors", "manifest.json"]
    for path in trained.package.iterdir():
        content = path.read_bytes()
        assert str(tmp_path).encode() not in content
        assert str(tiny_base).encode() not in content


def test_the_manifest_says_how_the_adapter_was_made(trained: TrainReport, tiny_base: Path) -> None:
    manifest = json.loads((trained.package / "manifest.json").read_text())

    assert manifest["base"]["fingerprint"] == base_spec(tiny_base).fingerprint
    assert manifest["base"]["template_sha256"] == hashlib.sha256(TEMPLATE.encode()).hexdigest()
    assert manifest["base"]["tokenizer_sha256"] == tokenizer_hash(tiny_base)
    assert manifest["training"]["seed"] == 7
    assert manifest["training"]["num_steps"] == trained.num_steps == 2
    assert manifest["training"]["final_loss"] > 0


def test_training_prints_nothing_on_standard_output(
    recipe_path: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(recipe_path.parent, train={**TRAIN, "epochs": 10})
    train_recipe(recipe, tmp_path / "package", base_folder=tiny_base)

    assert capsys.readouterr().out == ""


def test_progress_reaches_the_last_tenth_step(recipe_path: Path, tiny_base: Path, tmp_path: Path) -> None:
    looks: list[TrainProgress] = []
    recipe = write_recipe(recipe_path.parent, train={**TRAIN, "epochs": 10})
    train_recipe(recipe, tmp_path / "package", looks.append, tiny_base)

    assert [(look.step, look.num_steps) for look in looks] == [(10, 20), (20, 20)]
    assert looks[1].loss < looks[0].loss


def test_a_training_that_diverges_writes_no_package(
    recipe_path: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from loraplex_trainer import base_model

    load = base_model.load_for_training

    def load_broken(*args: object) -> object:
        model = load(*args)  # type: ignore[arg-type]
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.fill_(float("nan"))
        return model

    monkeypatch.setattr(base_model, "load_for_training", load_broken)
    with pytest.raises(TrainingDivergedError, match="learning_rate"):
        train_recipe(recipe_path, tmp_path / "package", base_folder=tiny_base)
    assert not (tmp_path / "package").exists()


def test_an_adapter_trains_over_a_base_in_four_bits(
    recipe_path: Path, tiny_base: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(recipe_path.parent, quant="nf4")
    report = train_recipe(recipe, tmp_path / "package", base_folder=tiny_base)

    assert read_package(report.package).config.rank == 2
    assert json.loads((report.package / "manifest.json").read_text())["base"]["trained_on"] == "nf4"


@pytest.mark.parametrize("precision", ["fp32", "int8", "nf4"])
def test_answers_do_not_depend_on_the_batch_they_are_asked_in(
    trained: TrainReport, tiny_base: Path, precision: str
) -> None:
    rows = [
        EvalRow(id=str(n), system=SYSTEM, question="?" * n, answer="x", grader="exact", expected="x")
        for n in (1, 9, 4)
    ]
    together = evaluate(tiny_base, {"q": rows}, trained.package, precision, batch_size=3)  # type: ignore[arg-type]
    alone = evaluate(tiny_base, {"q": rows}, trained.package, precision, batch_size=1)  # type: ignore[arg-type]

    assert [answer.completion for answer in together["q"]] == [answer.completion for answer in alone["q"]]


def test_a_report_compares_the_adapter_with_the_base_and_with_other_domains(
    recipe_path: Path, tiny_base: Path, tmp_path: Path
) -> None:
    question = EvalRow(
        id="1", system=SYSTEM, question="What is red?", answer="Red.", grader="exact", expected="Red"
    )
    (recipe_path.parent / "eval.jsonl").write_text(json.dumps(question) + "\n")
    other = tmp_path / "other"
    other.mkdir()
    (other / "train.jsonl").write_text("")
    (other / "eval.jsonl").write_text(json.dumps({**question, "expected": "Mauve"}) + "\n")
    other_recipe = write_recipe(other, name="other")
    trained = write_recipe(recipe_path.parent, lora={"rank": 8}, train={**TRAIN, "epochs": 40})
    train_recipe(trained, tmp_path / "package", base_folder=tiny_base)

    looks: list[tuple[int, int]] = []

    report = evaluate_recipe(
        trained,
        tmp_path / "package",
        [other_recipe],
        "fp32",
        tiny_base,
        lambda done, total: looks.append((done, total)),
    )

    assert looks == [(0, 3), (1, 3), (2, 3), (3, 3)]  # both sets with the adapter, its own without
    assert (report.questions, report.base, report.on_other_domains) == (1, 0.0, {"other": 0.0})
    assert report.adapter == 1.0
