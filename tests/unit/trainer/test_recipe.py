from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from loraplex_trainer.domains.files import DOMAINS
from loraplex_trainer.errors import RecipeError
from loraplex_trainer.recipe.document import Recipe, dump_recipe, parse_recipe, read_recipe
from loraplex_trainer.recipe.schema import new_recipe, recipe_schema

from .conftest import write_recipe

SHIPPED = Path(__file__).parents[3] / "adapters"
SOURCES = [{"path": "train.jsonl"}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nmae": "x"}, "nmae"),
        ({"version": 2}, "version"),
        ({"name": "Not A Name"}, "name"),
        ({"tenant": "a/b"}, "tenant"),
        ({"system": ""}, "system"),
        ({"base": {"fingerprint": "abc"}}, r"base\.fingerprint"),
        ({"method": "full"}, "method"),
        ({"method": "lora", "quant": {"bits": 4}}, "4 and 2 bits are qlora"),
        ({"method": "qlora", "quant": {"bits": 8}}, "qlora trains over 4 bits"),
        ({"quant": {"bits": 3}}, r"quant\.bits"),
        ({"quant": {"bits": 2}}, "2 bits need the backend"),
        ({"quant": {"backend": "hqq"}}, "those are for 2 bits only"),
        ({"quant": {"type": "int4"}}, r"quant\.type"),
        ({"lora": {"rank": 0}}, r"lora\.rank"),
        ({"lora": {"rank": 257}}, r"lora\.rank"),
        ({"lora": {"alpha": 0}}, r"lora\.alpha"),
        ({"lora": {"dropout": 1}}, r"lora\.dropout"),
        ({"lora": {"targets": ["lm_head"]}}, "lm_head"),
        ({"lora": {"targets": []}}, r"lora\.targets"),
        ({"train": {"learning_rate": -1}}, r"train\.learning_rate"),
        ({"train": {"epochs": {"min": 5, "max": 4}}}, r"train\.epochs.*min 5 is above max 4"),
        ({"train": {"epoch": 3}}, r"train\.epoch"),
        ({"train": {"micro_batch": 0}}, r"train\.micro_batch"),
        ({"train": {"optimizer": "sgd"}}, r"train\.optimizer"),
        ({"data": {"sources": []}}, r"data\.sources"),
        ({"data": {"sources": [{"path": "a", "format": "docx"}]}}, r"data\.sources\.0\.format"),
        ({"data": {"sources": SOURCES, "general": {"share": 1.0}}}, r"data\.general\.share"),
        ({"data": {"sources": SOURCES, "clean": {"pii": "show"}}}, r"data\.clean\.pii"),
        ({"data": {"sources": SOURCES, "max_length": 4}}, r"data\.max_length"),
        ({"stages": [{"name": "a"}, {"name": "a"}]}, "two have the same name"),
        ({"curriculum": {"mode": "random"}}, r"curriculum\.mode"),
        ({"overfit": {"ratio": 1.0}}, r"overfit\.ratio"),
        ({"samples": {"pause_if_bad": 2}}, r"samples\.pause_if_bad"),
        ({"eval": {"on": "fp8"}}, r"eval\.on"),
        ({"gate": {"confidence": 0.5}}, r"gate\.confidence"),
        ({"resources": {"vram_gb": 0}}, r"resources\.vram_gb"),
        ({"resources": {"device": "tpu"}}, r"resources\.device"),
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


@pytest.mark.parametrize("field", ["name", "system", "data"])
def test_what_only_the_user_can_know_must_be_given(recipe_path: Path, field: str) -> None:
    content = yaml.safe_load(recipe_path.read_text())
    del content[field]

    with pytest.raises(RecipeError, match=f"{field}: Field required"):
        parse_recipe(content, "recipe.yaml")


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
    spelled_out = read_recipe(write_recipe(recipe_path.parent, quant={"bits": "auto", "double": True}))
    other = read_recipe(write_recipe(recipe_path.parent, quant={"bits": 4}))

    assert plain.sha256() == spelled_out.sha256() != other.sha256()


def test_a_written_recipe_is_read_back_as_the_same(recipe_path: Path, tmp_path: Path) -> None:
    recipe = read_recipe(recipe_path)
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe))

    assert read_recipe(again) == recipe


def test_m34_two_bits_are_accepted_with_their_backends(recipe_path: Path) -> None:
    for backend in ("hqq", "aqlm"):
        quant = {"bits": 2, "backend": backend}
        recipe = read_recipe(write_recipe(recipe_path.parent, method="qlora", quant=quant))
        assert recipe.quant.bits == 2


@pytest.mark.parametrize("name", sorted(DOMAINS))
def test_the_json_schema_takes_the_shipped_recipes(name: str) -> None:
    content = yaml.safe_load((SHIPPED / name / "recipe.yaml").read_text())

    jsonschema.validate(content, recipe_schema())


@pytest.mark.parametrize(
    "change", [{"nmae": "x"}, {"lora": {"rank": "big"}}, {"train": {"epochs": 3}}, {"method": "full"}]
)
def test_the_json_schema_refuses_what_the_recipe_refuses(recipe_path: Path, change: dict[str, Any]) -> None:
    content = {**yaml.safe_load(recipe_path.read_text()), **change}

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, recipe_schema())
    with pytest.raises(RecipeError):
        parse_recipe(content, "recipe.yaml")


def test_the_json_schema_is_itself_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(recipe_schema())


@pytest.mark.parametrize("system", [None, 'Say "yes": always\n# not a comment', "只用一句话回答。"])
def test_a_new_recipe_is_one_and_says_what_was_given(system: str | None) -> None:
    recipe = parse_recipe(yaml.safe_load(new_recipe("faq", "data/*.jsonl", system, "finance")), "new")

    assert (recipe.name, recipe.tenant, recipe.system) == ("faq", "finance", system)
    assert recipe.data.sources[0].path == "data/*.jsonl"
    assert isinstance(recipe, Recipe)


def test_a_new_recipe_of_a_bad_name_is_refused() -> None:
    with pytest.raises(RecipeError, match="name"):
        new_recipe("Not A Name", "rows.jsonl", None)
