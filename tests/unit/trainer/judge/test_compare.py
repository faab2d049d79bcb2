from __future__ import annotations

import json
from pathlib import Path

import pytest

from loraplex_trainer.errors import RecipeError, RunIncompleteError
from loraplex_trainer.judge.compare import PAIRS, Comparison, compare, variant_of
from loraplex_trainer.recipe.document import Recipe, read_recipe

from ..train.conftest import COLOURS
from .conftest import question, write_colour_recipe, write_lines


def test_variants_differ_from_the_recipe_in_what_their_name_says(recipe: Recipe) -> None:
    lora, qlora, raw = (variant_of(recipe, name) for name in ("lora", "qlora", "raw"))

    assert (lora.method, qlora.method) == ("lora", "qlora")
    assert variant_of(recipe, "clean") == recipe
    assert not raw.data.clean.dedup.exact
    assert (raw.data.clean.min_chars_mode, raw.data.clean.lint) == ("off", "off")
    assert raw.data.clean.pii == recipe.data.clean.pii  # never trained on, not even for a comparison
    assert raw.train == lora.train == qlora.train == recipe.train


def test_a_recipe_in_four_bits_can_still_be_compared_as_lora(recipe: Recipe) -> None:
    four = recipe.model_copy(update={"method": "qlora", "quant": recipe.quant.model_copy(update={"bits": 4})})

    assert variant_of(four, "lora").quant.bits == "auto"


@pytest.mark.parametrize("names", [("lora", "raw"), ("lora", "lora"), ("clean", "qlora")])
def test_what_is_no_pair_is_refused(
    recipe: Recipe, recipe_file: Path, tiny_base: Path, tmp_path: Path, names: tuple[str, str]
) -> None:
    with pytest.raises(RecipeError, match="lora with qlora or raw with clean"):
        compare(*names, recipe, recipe_file.parent, tiny_base, tmp_path)


def test_raw_and_clean_data_need_questions_of_their_own(
    recipe: Recipe, recipe_file: Path, tiny_base: Path, tmp_path: Path
) -> None:
    nothing = recipe.model_copy(update={"eval": recipe.eval.model_copy(update={"domain": None})})

    with pytest.raises(RecipeError, match=r"eval\.domain"):
        compare("raw", "clean", nothing, recipe_file.parent, tiny_base, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_both_variants_are_trained_and_set_side_by_side(
    tiny_base: Path, tmp_path: Path, pair: tuple[str, str]
) -> None:
    path = write_colour_recipe(tmp_path, tiny_base, train={"epochs": {"min": 1, "max": 1}}, samples={"n": 0})
    trained = (path.parent / "train.jsonl").read_text()
    (path.parent / "train.jsonl").write_text(trained + trained.splitlines()[0] + "\n")  # one row twice
    recipe = read_recipe(path)
    write_lines(path.parent / "eval.jsonl", [question("mauve"), question("beige")])

    comparison = compare(*pair, recipe, path.parent, tiny_base, tmp_path / "runs")

    document = comparison.document()
    assert list(document["variants"]) == list(pair)
    rows = [found["num_rows"] for found in document["variants"].values()]
    methods = [found["method"] for found in document["variants"].values()]
    if pair == ("lora", "qlora"):
        assert methods[0].startswith("lora")
        assert methods[1] == "qlora-nf4"
        assert rows == [len(COLOURS)] * 2
        assert (document["max_quality_loss"], document["verdict"]) == (
            3.0,
            "inconclusive",
        )  # of two questions
    else:
        assert rows == [len(COLOURS) + 1, len(COLOURS)]
        assert document["verdict"] is None
    assert comparison.domain_change.n == 2
    for name in pair:
        assert json.loads((tmp_path / "runs" / name / "eval.json").read_text())["domain_adapter"]["n"] == 2
        assert (tmp_path / "runs" / name / "package" / "manifest.json").is_file()


@pytest.mark.slow
def test_a_comparison_that_paused_goes_on_when_it_is_asked_again(tiny_base: Path, tmp_path: Path) -> None:
    path = write_colour_recipe(
        tmp_path,
        tiny_base,
        train={"epochs": {"min": 2, "max": 2}, "learning_rate": 1e-6},
        samples={"n": 2, "max_new_tokens": 2, "pause_if_bad": 0.0},
    )
    recipe = read_recipe(path)

    def ask() -> Comparison:
        return compare("raw", "clean", recipe, path.parent, tiny_base, tmp_path / "runs")

    for name in ("raw", "clean"):
        with pytest.raises(RunIncompleteError, match=f"'{name}' is paused.*same command"):
            ask()
    assert ask().domain_change.n == 1
