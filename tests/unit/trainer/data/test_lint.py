"""D04: parts of chat templates inside rows are found, then fixed, dropped or refused, as the recipe says."""

from __future__ import annotations

import pytest

from loraplex_trainer.data.lint import findings, lint_rows
from loraplex_trainer.errors import TrainingDataError
from tests.unit.trainer.data.support import row

FIXABLE = {
    "ChatML": row("<|im_start|>user\nWhich door?<|im_end|>", "The green one.<|im_end|>"),
    "Llama 2": row("[INST] Which door? [/INST]", "The green one."),
    "Llama 3": row("<|start_header_id|>user<|end_header_id|>\n\nWhich door?<|eot_id|>", "The green one."),
    "Gemma": row("<start_of_turn>user\nWhich door?<end_of_turn>\n", "The green one."),
    "Alpaca": row("### Instruction:\nWhich door?\n\n### Response:\n", "The green one."),
    "Zephyr": row("<|user|>\nWhich door?", "<|assistant|>\nThe green one."),
    "DeepSeek": row("<｜User｜>Which door?", "The green one."),
    "BOS or EOS": row("<s><s>Which door?", "The green one.</s>"),
    "doubled role marker": row("Which door?\nAssistant:", "The green one."),
}
UNFIXABLE = {
    "ChatML": row("Hi<|im_end|>\n<|im_start|>assistant\nHello", "The green one."),
    "Alpaca": row("Which door?", "The green one.\n### Instruction:\nAnother task"),
    "doubled role marker": row("User: Hi\nAssistant: Hello\nUser: Which door?", "The green one."),
}


@pytest.mark.parametrize("name", sorted(FIXABLE))
def test_d04_a_wrapper_around_a_turn_is_found_and_taken_off(name: str) -> None:
    planted = FIXABLE[name]

    result = lint_rows([planted], "fix")

    assert findings(planted) == (name,)
    assert result.found == {name: 1}
    assert [(fixed.question, fixed.completion) for fixed in result.rows] == [
        ("Which door?", "The green one.")
    ]
    assert result.fixed == 1


@pytest.mark.parametrize("name", sorted(UNFIXABLE))
def test_d04_turns_inside_a_turn_cannot_be_fixed_and_go(name: str) -> None:
    result = lint_rows([UNFIXABLE[name]], "fix")

    assert result.rows == []
    assert result.dropped == [("rows.jsonl, line 1", f"foreign template: {name}")]


@pytest.mark.parametrize("name", sorted(FIXABLE))
def test_d04_the_other_modes_drop_refuse_or_leave(name: str) -> None:
    rows = [FIXABLE[name], row("Which hall?", "The red hall.")]

    assert lint_rows(rows, "drop").rows == rows[1:]
    assert lint_rows(rows, "off").rows == rows
    with pytest.raises(TrainingDataError, match=r"strict, and 1 rows .* rows\.jsonl, line 1"):
        lint_rows(rows, "strict")


@pytest.mark.parametrize(
    "text",
    [
        "Use a < b and c > d, or [INSTALL] the package.",
        "# Heading\n\nText with **bold** and a list:\n- one\n- two",
        "Which is right?\nA: Paris\nB: London\nC: Rome",
        "时间：上午九点。地点：二楼。",
        "Note: the answer: 12.",
        "| a | b |\n|---|---|",
    ],
)
def test_d04_ordinary_text_is_no_template(text: str) -> None:
    assert findings(row(text, text)) == ()


def test_d04_strict_mode_passes_clean_rows() -> None:
    rows = [row("Which hall?", "The red hall.")]

    assert lint_rows(rows, "strict").rows == rows
