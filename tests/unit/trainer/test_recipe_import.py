"""Recipes from LLaMA-Factory and Axolotl files, and the commands around recipes."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.main import app
from loraplex_trainer.errors import RecipeError
from loraplex_trainer.recipe.convert import convert, import_recipe
from loraplex_trainer.recipe.document import read_recipe
from loraplex_trainer.recipe.foreign_keys import Origin

LLAMA_FACTORY = """\
model_name_or_path: meta-llama/Llama-2-7b-hf
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 16
lora_alpha: 32
lora_dropout: 0.1
lora_target: q_proj,v_proj
quantization_bit: 4
double_quantization: false
dataset: legal,alpaca_zh
dataset_dir: corpora
template: llama2
cutoff_len: 2048
val_size: 0.05
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
weight_decay: 0.01
optim: paged_adamw_8bit
bf16: true
packing: true
seed: 7
output_dir: saves/llama
plot_loss: true
"""
AXOLOTL = """\
base_model: NousResearch/Llama-2-7b-hf
adapter: qlora
load_in_4bit: true
datasets:
  - path: data/faq.jsonl
    type: chat_template
val_set_size: 0.1
sequence_len: 4096
sample_packing: false
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: adamw_bnb_8bit
lr_scheduler: linear
learning_rate: 0.0002
warmup_ratio: 0.05
gradient_checkpointing: true
bf16: auto
flash_attention: true
special_tokens:
  pad_token: "<pad>"
"""


def converted(text: str, origin: Origin) -> Any:
    return convert(yaml.safe_load(text), origin, "my file")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["train", "recipe", *arguments])


def test_a_llamafactory_file_keeps_what_it_says() -> None:
    recipe = converted(LLAMA_FACTORY, "llamafactory").recipe

    assert recipe.name == "my-file"
    assert recipe.base.model == "meta-llama/Llama-2-7b-hf"
    assert [source.path for source in recipe.data.sources] == ["corpora/legal.json", "corpora/alpaca_zh.json"]
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.lora.dropout) == (16, 32, 0.1)
    assert recipe.lora.targets == ("q_proj", "v_proj")
    assert (recipe.method, recipe.quant.bits, recipe.quant.double) == ("qlora", 4, False)
    assert recipe.quant.compute == "bf16"
    assert (recipe.data.max_length, recipe.data.val.share) == (2048, 0.05)
    train = recipe.train
    assert (train.effective_batch, train.learning_rate, train.epochs.max, train.seed) == (16, 1e-4, 3, 7)
    assert (train.scheduler, train.warmup, train.weight_decay) == ("cosine", 0.1, 0.01)
    assert (train.optimizer, train.packing) == ("paged_adamw_8bit", True)


def test_an_axolotl_file_keeps_what_it_says() -> None:
    recipe = converted(AXOLOTL, "axolotl").recipe

    assert recipe.base.model == "NousResearch/Llama-2-7b-hf"
    assert [source.path for source in recipe.data.sources] == ["data/faq.jsonl"]
    assert (recipe.method, recipe.quant.bits, recipe.quant.compute) == ("qlora", 4, "auto")
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.lora.targets) == (32, 16, "all-linear")
    assert (recipe.data.max_length, recipe.data.val.share) == (4096, 0.1)
    train = recipe.train
    assert (train.effective_batch, train.learning_rate, train.epochs.max) == (8, 2e-4, 4)
    assert (train.optimizer, train.scheduler, train.checkpointing) == ("adamw_8bit", "linear", True)


def test_what_has_no_counterpart_is_listed_and_nothing_else() -> None:
    left = converted(LLAMA_FACTORY, "llamafactory").not_carried_over
    assert [entry.partition(":")[0] for entry in left] == ["template", "output_dir", "plot_loss"]

    left = converted(AXOLOTL, "axolotl").not_carried_over
    assert [entry.partition(":")[0] for entry in left] == ["flash_attention", "special_tokens"]


def test_a_value_without_counterpart_is_listed_with_the_reason() -> None:
    text = LLAMA_FACTORY.replace("cosine", "polynomial").replace("stage: sft", "stage: dpo")

    left = converted(text, "llamafactory").not_carried_over

    assert "lr_scheduler_type: polynomial has no counterpart" in left
    assert any(entry.startswith("stage: dpo is not offered") for entry in left)


@pytest.mark.parametrize(
    ("size", "expected"), [(0, (0.0, 0, 2000)), (0.2, (0.2, 20, 2000)), (100, (0.99, 100, 100))]
)
def test_a_validation_size_is_a_share_or_a_number_of_rows(size: float, expected: tuple[Any, ...]) -> None:
    text = LLAMA_FACTORY.replace("val_size: 0.05", f"val_size: {size}")

    val = converted(text, "llamafactory").recipe.data.val

    assert (val.share, val.min, val.max) == expected


@pytest.mark.parametrize(
    ("origin", "old", "new", "message"),
    [
        ("llamafactory", "dataset: legal,alpaca_zh", "dataset:", "names no data set"),
        ("llamafactory", "learning_rate: 1.0e-4", "learning_rate: fast", "learning_rate: 'fast'"),
        ("llamafactory", "lora_rank: 16", "lora_rank: 1000", r"lora\.rank"),
        ("axolotl", "adapter: qlora", "adapter: null", "only lora and qlora"),
        ("axolotl", "micro_batch_size: 2", "micro_batch_size: two", "micro_batch_size"),
    ],
)
def test_a_file_that_cannot_be_a_recipe_is_refused_by_its_own_words(
    origin: Origin, old: str, new: str, message: str
) -> None:
    text = {"llamafactory": LLAMA_FACTORY, "axolotl": AXOLOTL}[origin]
    assert old in text

    with pytest.raises(RecipeError, match=message):
        converted(text.replace(old, new), origin)


@pytest.mark.parametrize("content", ["just text", "a: [", ""])
def test_what_is_no_settings_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "file.yaml").write_text(content)

    with pytest.raises(RecipeError, match=r"file\.yaml"):
        import_recipe(tmp_path / "file.yaml", "axolotl")


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5000) | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=40)
@given(origin=st.sampled_from(["llamafactory", "axolotl"]), changes=st.data())
def test_whatever_the_values_it_is_a_recipe_or_a_recipe_error(origin: Origin, changes: st.DataObject) -> None:
    content = yaml.safe_load({"llamafactory": LLAMA_FACTORY, "axolotl": AXOLOTL}[origin])
    for key in changes.draw(st.lists(st.sampled_from(sorted(content)), max_size=3)):
        content[key] = changes.draw(_VALUES)

    with suppress(RecipeError):
        assert convert(content, origin, "any").recipe.data.sources


def test_the_import_command_writes_a_recipe_that_the_check_command_takes(tmp_path: Path) -> None:
    (tmp_path / "llama.yaml").write_text(LLAMA_FACTORY)
    target = tmp_path / "recipe.yaml"

    result = run("import", "llamafactory", str(tmp_path / "llama.yaml"), "--output", str(target))
    checked = run("check", str(target), "--json")

    assert result.exit_code == 0, result.output
    assert "not carried over: template" in result.stderr
    assert json.loads(checked.stdout)["sha256"] == read_recipe(target).sha256()


def test_the_import_command_prints_the_recipe_without_an_output(tmp_path: Path) -> None:
    (tmp_path / "axolotl.yaml").write_text(AXOLOTL)

    text = run("import", "axolotl", str(tmp_path / "axolotl.yaml")).stdout
    document = json.loads(run("import", "axolotl", str(tmp_path / "axolotl.yaml"), "--json").stdout)

    assert yaml.safe_load(text) == document["recipe"]
    assert len(document["not_carried_over"]) == 2


def test_the_new_command_writes_a_recipe_and_never_over_one(tmp_path: Path) -> None:
    target = str(tmp_path / "recipe.yaml")
    arguments = ("new", target, "--name", "faq", "--data", "rows/*.csv", "--system", "Be brief.")

    assert run(*arguments).exit_code == 0
    again = run(*arguments, "--json")

    assert read_recipe(Path(target)).system == "Be brief."
    assert again.exit_code == ExitCode.BAD_INPUT
    assert json.loads(again.stdout)["error"]["reason"] == "FILE_ERROR"


def test_the_schema_command_prints_the_schema() -> None:
    assert json.loads(run("schema").stdout) == json.loads(run("schema", "--json").stdout)
    assert "system" in json.loads(run("schema").stdout)["required"]
