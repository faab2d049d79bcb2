"""What others take from a plan: the resolved recipe, the quantizer's configuration, sizes, exit codes, texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.main import app
from loraplex_trainer.plan.hardware import described_gpu
from loraplex_trainer.plan.planner import make_plan
from loraplex_trainer.plan.quantization import quantization_config, quantization_kwargs
from loraplex_trainer.plan.resolve import resolve
from loraplex_trainer.plan.shape import PRESETS, model_shape
from loraplex_trainer.plan.size_report import size_report
from loraplex_trainer.recipe.document import dump_recipe, parse_recipe

from ..conftest import write_recipe
from .conftest import recipe_of

DECIDED_BY_ROWS = {"data.sources.0.format", "curriculum.tiers"}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["train", *arguments])


def _autos(content: Any, path: str = "") -> set[str]:
    """Paths of all values that are "auto"."""
    if isinstance(content, dict):
        return {
            found for key, value in content.items() for found in _autos(value, f"{path}.{key}".lstrip("."))
        }
    if isinstance(content, list):
        return {found for key, value in enumerate(content) for found in _autos(value, f"{path}.{key}")}
    return {path} if content == "auto" else set()


@pytest.mark.parametrize("gpu", [8, 12, 24, 48])
def test_a_resolved_recipe_has_no_auto_left_and_asks_for_the_same_plan(gpu: int) -> None:
    card = described_gpu(gpu)
    recipe = recipe_of(lora={"rank": "auto"}, train={"packing": "auto"})
    plan = make_plan(recipe, PRESETS["7b"], card)

    resolved = resolve(recipe, plan)

    assert _autos(resolved.model_dump(mode="json")) == DECIDED_BY_ROWS
    again = make_plan(resolved, PRESETS["7b"], card)
    for field in (
        "method",
        "compute",
        "optimizer",
        "learning_rate",
        "rank",
        "alpha",
        "micro_batch",
        "memory",
    ):
        assert getattr(again, field) == getattr(plan, field)
    assert (again.checkpointing, again.unquantized) == (plan.checkpointing, plan.unquantized)
    assert parse_recipe(json.loads(json.dumps(resolved.model_dump(mode="json"))), "again") == resolved
    assert "all-linear" not in dump_recipe(resolved)


@pytest.mark.parametrize(
    ("quant", "expected"),
    [
        ({"bits": 16}, {}),
        (
            {"bits": 8},
            {"load_in_8bit": True, "llm_int8_threshold": 6.0, "llm_int8_skip_modules": ["lm_head"]},
        ),
        (
            {"bits": 4, "type": "fp4", "double": False, "skip": ["q_proj"]},
            {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": "fp4",
                "bnb_4bit_use_double_quant": False,
                "bnb_4bit_compute_dtype": torch.bfloat16,
                "llm_int8_skip_modules": ["lm_head", "q_proj"],
            },
        ),
    ],
)
def test_m14_m16_the_quantizer_is_told_what_the_plan_says(
    quant: dict[str, Any], expected: dict[str, Any]
) -> None:
    plan = make_plan(recipe_of(quant=quant), PRESETS["1.3b"], described_gpu(48))

    assert quantization_kwargs(plan) == expected


@pytest.mark.parametrize(
    ("quant", "expected"),
    [
        ({"bits": 4}, {"q_proj": "Linear4bit", "up_proj": "Linear4bit"}),
        ({"bits": 4, "skip": ["attention"]}, {"q_proj": "Linear", "up_proj": "Linear4bit"}),
        ({"bits": 8, "skip": ["mlp"]}, {"q_proj": "Linear8bitLt", "up_proj": "Linear"}),
    ],
    ids=["nf4", "nf4 but attention", "int8 but mlp"],
)
def test_m16_the_loaded_modules_are_of_the_kinds_asked_for(
    tiny_base: Path, quant: dict[str, Any], expected: dict[str, str]
) -> None:
    plan = make_plan(recipe_of(quant=quant, data=_short()), model_shape(tiny_base), described_gpu(8))

    model = AutoModelForCausalLM.from_pretrained(
        tiny_base, dtype=torch.bfloat16, quantization_config=quantization_config(plan), device_map={"": "cpu"}
    )

    kinds = {name.rpartition(".")[2]: type(module).__name__ for name, module in model.named_modules()}
    assert {name: kinds[name] for name in expected} == expected
    assert kinds["lm_head"] == "Linear"


def _short() -> dict[str, Any]:
    return {"sources": [{"path": "rows.jsonl"}], "max_length": 64}


def test_m11_three_adapters_on_one_base_take_about_two_thirds_less_than_three_copies() -> None:
    shape = PRESETS["7b"]

    sizes = size_report(shape, make_plan(recipe_of(), shape, described_gpu(12)))

    assert sizes.adapter_bytes == 79_953_920 * 2
    assert sizes.saved_share == pytest.approx(0.66, abs=0.01)
    assert sizes.share == pytest.approx(0.0119, abs=0.0001)


def test_m18_the_command_ends_with_6_and_advice_where_nothing_fits() -> None:
    result = run("plan", "--model", "70b", "--gpu", "24", "--json")

    assert result.exit_code == ExitCode.DOES_NOT_FIT
    error = json.loads(result.stdout)["error"]
    assert error["reason"] == "TRAINING_DOES_NOT_FIT"
    assert error["nearest"]["card_gb"] == 48
    assert "a card of 48 GB" in error["message"]


def test_the_command_shows_choices_memory_and_the_rule_of_thumb() -> None:
    text = run("plan", "--model", "7b", "--gpu", "24", "--rows", "500").stdout

    for part in ("lora-bf16", "79,953,920", "train.micro_batch", "planned peak", "Common advice for 24 GB"):
        assert part in text


def test_the_commands_document_has_the_whole_plan(tmp_path: Path) -> None:
    result = run("plan", str(write_recipe(tmp_path)), "--model", "13b", "--gpu", "12", "--json")

    document = json.loads(result.stdout)
    assert document["method"] == "qlora-nf4"
    assert document["memory"]["total"] == sum(
        size for part, size in document["memory"].items() if part != "total"
    )
    assert document["choices"]
    assert document["rejected"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan",),
        ("plan", "--model", "7b", "--gpu", "24", "--measure"),
        ("plan", "--model", "7b", "--measure"),
    ],
    ids=" ".join,
)
def test_options_that_do_not_go_together_are_bad_usage(arguments: tuple[str, ...]) -> None:
    result = run(*arguments, "--json")

    assert result.exit_code == ExitCode.BAD_INPUT
    assert json.loads(result.stdout)["error"]["reason"] in ("BAD_USAGE", "TRAINING_DOES_NOT_FIT")
