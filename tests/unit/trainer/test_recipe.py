from __future__ import annotations

from pathlib import Path

import pytest

from loraplex_trainer.errors import RecipeError
from loraplex_trainer.recipe.document import read_recipe

from .conftest import write_recipe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nmae": "x"}, "nmae"),
        ({"name": "Not A Name"}, "name"),
        ({"system": ""}, "system"),
        ({"quant": "int3"}, "quant"),
        ({"lora": {"rank": 0}}, "lora.rank"),
        ({"lora": {"target_modules": ["lm_head"]}}, "lm_head"),
        ({"lora": {"target_modules": []}}, "target_modules"),
        ({"train": {"learning_rate": -1}}, "train.learning_rate"),
        ({"train": {"epoch": 3}}, "train.epoch"),
        ({"data": {"train": "none.jsonl", "eval": "eval.jsonl"}}, r"none\.jsonl"),
    ],
)
def test_a_wrong_recipe_is_refused_by_the_name_of_its_field(
    recipe_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        read_recipe(write_recipe(recipe_path.parent, **changes))


def test_all_wrong_fields_are_named_at_once(recipe_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"name.*lora\.rank"):
        read_recipe(write_recipe(recipe_path.parent, name="", lora={"rank": -3}))


@pytest.mark.parametrize("content", [b"name: [", b"\xff\xfe", b"just text"])
def test_what_is_no_recipe_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(RecipeError):
        read_recipe(tmp_path / "recipe.yaml")


def test_a_missing_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path / "recipe.yaml")


def test_the_hash_covers_defaults_and_changes(recipe_path: Path) -> None:
    plain = read_recipe(recipe_path)
    spelled_out = read_recipe(write_recipe(recipe_path.parent, quant="none"))
    other = read_recipe(write_recipe(recipe_path.parent, quant="nf4"))

    assert plain.sha256() == spelled_out.sha256() != other.sha256()
