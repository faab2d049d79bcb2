"""D13: tokens of rows are counted in the base's own template; too long rows are listed, and nothing is ever cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from loraplex_trainer.data.build import build_data, inspect_data
from loraplex_trainer.data.lengths import RowLength, histogram, measure
from loraplex_trainer.errors import TrainingDataError
from tests.unit.trainer.data.support import facts, recipe_of, row, write_pairs

LONG = ("Which text is long?", "This one, which goes on and on. " * 12)


def test_d13_an_overlong_row_is_listed_with_its_place_and_the_rest_is_kept_whole(
    tmp_path: Path, tiny_base: Path
) -> None:
    write_pairs(tmp_path / "rows.jsonl", [*facts(40), LONG])
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    recipe = recipe_of(["rows.jsonl"], max_length=300)

    built = build_data(recipe, tmp_path, tmp_path / "out", tokenizer)

    lengths = built.report.lengths
    assert lengths.overlong == 1
    assert [place.origin for place in lengths.overlong_rows] == ["rows.jsonl, line 41"]
    assert int(lengths.overlong_rows[0].reason.split()[0]) > 300
    assert sorted((r.question, r.completion) for r in built.train) == sorted(facts(40))
    assert any("more than 300 tokens" in warning for warning in built.warnings)


def test_d13_overlong_rows_are_an_error_where_the_recipe_says_so(tmp_path: Path, tiny_base: Path) -> None:
    write_pairs(tmp_path / "rows.jsonl", [*facts(40), LONG])
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    recipe = recipe_of(["rows.jsonl"], max_length=300, overlong="error")

    with pytest.raises(TrainingDataError, match=r"1 rows have more than 300 tokens"):
        build_data(recipe, tmp_path, tmp_path / "out", tokenizer)


def test_d13_tokens_are_those_of_the_template_with_the_recipes_system_turn(tiny_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)

    (length,) = measure([row("Hi?", "Yes.")], tokenizer, "Be brief.")

    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}]
    whole = tokenizer.apply_chat_template(
        [*turns, {"role": "assistant", "content": "Yes."}], return_dict=False
    )
    asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert length == RowLength(len(whole), len(whole) - len(asked))


def test_d13_without_a_tokenizer_the_report_says_that_nothing_was_measured(tmp_path: Path) -> None:
    write_pairs(tmp_path / "rows.jsonl", facts(40))

    assert not inspect_data(recipe_of(["rows.jsonl"], max_length=8), tmp_path).lengths.is_measured


def test_a_histogram_counts_every_row_once() -> None:
    lengths = [RowLength(n, 1) for n in (1, 32, 33, 64, 200)]

    assert histogram(lengths) == {"≤32": 2, "≤64": 2, "≤128": 0, "≤256": 1}
