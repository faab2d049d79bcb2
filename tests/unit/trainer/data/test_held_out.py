"""D05, D12: what is asked at the end is in no part of the data; validation is a fixed, balanced part."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex_trainer.data.build import build_data, inspect_data
from loraplex_trainer.data.held_out import HeldOut, decontaminate, suite_keys
from loraplex_trainer.data.split import num_val, split_rows
from loraplex_trainer.errors import TrainingDataError
from loraplex_trainer.recipe.sections import ValSection
from tests.unit.trainer.data.support import facts, recipe_of, row, write_pairs

LONG = (
    "In which of the halls of the northern warehouse do the wardens keep the old compass during the winter?",
    "They keep it in the hall by the river, since it is dry and warm there.",
)


def test_d05_rows_that_ask_a_held_out_question_are_dropped(tmp_path: Path) -> None:
    told = [*facts(59), LONG]
    write_pairs(tmp_path / "rows.jsonl", told)
    asked = [told[3][0].upper(), LONG[0].replace("wardens", "warden"), "Where is it?"]
    _write_questions(tmp_path, asked)
    recipe = recipe_of(["rows.jsonl"], recipe={"eval": {"domain": "eval.jsonl", "general": []}})

    report = inspect_data(recipe, tmp_path)

    assert (report.held_out.exact, report.held_out.near) == (1, 1)
    assert report.split.train == 58
    assert report.held_out.against == ["eval.jsonl"]


def test_d05_without_near_deduplication_only_the_same_words_are_dropped(tmp_path: Path) -> None:
    told = [*facts(59), LONG]
    write_pairs(tmp_path / "rows.jsonl", told)
    asked = [told[3][0].upper(), LONG[0].replace("wardens", "warden")]
    _write_questions(tmp_path, asked)
    recipe = recipe_of(
        ["rows.jsonl"],
        clean={"dedup": {"near": None}},
        recipe={"eval": {"domain": "eval.jsonl", "general": []}},
    )

    report = inspect_data(recipe, tmp_path)

    assert (report.held_out.exact, report.held_out.near) == (1, 0)


def test_d05_lines_of_suites_are_recognised_in_another_frame() -> None:
    items = [
        {"context": f"Review: The tale of the {word} moved me.\nIs this review positive or negative?"}
        for word in ("fox", "owl", "hen", "elk")
    ]
    held_out = HeldOut(lines=suite_keys(items))
    rows = [
        row("Positive or negative?\nThe tale of the owl moved me.", "positive"),
        row("Read this.\nIs this review positive or negative?", "positive"),
        row("What is an owl?", "A bird."),
    ]

    result = decontaminate(rows, held_out, None)

    assert result.rows == rows[1:]
    assert result.exact == 1


def test_an_eval_file_with_a_broken_line_is_named(tmp_path: Path) -> None:
    write_pairs(tmp_path / "rows.jsonl", facts(40))
    _write_questions(tmp_path, ["a"])
    with (tmp_path / "eval.jsonl").open("a") as lines:
        lines.write('{"ask": 1}\n')
    recipe = recipe_of(["rows.jsonl"], recipe={"eval": {"domain": "eval.jsonl"}})

    with pytest.raises(TrainingDataError, match=r"eval\.jsonl, line 2: lacks answer"):
        inspect_data(recipe, tmp_path)


def test_d12_the_split_is_the_same_for_shuffled_rows_and_survives_a_second_build(tmp_path: Path) -> None:
    told = facts(300)
    shuffled = list(told)
    random.Random(1).shuffle(shuffled)
    for name, content in (("a", told), ("b", shuffled)):
        (tmp_path / name).mkdir()
        write_pairs(tmp_path / name / "rows.jsonl", content)
    recipe = recipe_of(["rows.jsonl"], val={"share": 0.1})

    one = build_data(recipe, tmp_path / "a", tmp_path / "one")
    other = build_data(recipe, tmp_path / "b", tmp_path / "other")

    assert [r.id for r in one.val] == [r.id for r in other.val]
    assert [r.id for r in one.train] == [r.id for r in other.train]
    assert len(one.val) == 30


def test_d12_more_rows_move_few_of_the_old_ones() -> None:
    rows = [row(q, a) for q, a in facts(400)]

    _, before = split_rows(rows[:360], ValSection())
    _, after = split_rows(rows, ValSection())

    old = {r.id for r in rows[:360]}
    assert len({r.id for r in before} - {r.id for r in after}) <= 4
    assert len({r.id for r in after if r.id in old} - {r.id for r in before}) <= 4


def test_d12_every_tier_gives_its_part() -> None:
    rows = [row(q, a, tier=1 + (i % 10 > 4) + (i % 10 > 7)) for i, (q, a) in enumerate(facts(400))]

    _, val = split_rows(rows, ValSection(share=0.1))

    assert Counter(r.tier for r in val) == {1: 20, 2: 12, 3: 8}


@pytest.mark.parametrize(
    ("total", "val", "expected"),
    [
        (1000, {}, 100),
        (100, {}, 20),
        (30, {}, 15),
        (30_000, {}, 2000),
        (100, {"share": 0.0}, 0),
        (1, {}, 0),
        (50, {"min": 0, "share": 0.3}, 15),
    ],
)
def test_d12_the_part_is_a_tenth_within_its_bounds_and_at_most_half(
    total: int, val: dict[str, float], expected: int
) -> None:
    assert num_val(total, ValSection.model_validate(val)) == expected


@given(st.integers(2, 80), st.floats(0.05, 0.5), st.integers(1, 12))
def test_d12_clusters_are_whole_and_the_part_is_never_larger_than_asked(
    total: int, share: float, per_cluster: int
) -> None:
    rows = [replace(row(q, a), cluster=f"c{i // per_cluster}") for i, (q, a) in enumerate(facts(total))]
    section = ValSection(share=share, min=0)

    train, val = split_rows(rows, section)

    assert len(val) <= num_val(total, section)
    assert {r.cluster for r in train}.isdisjoint({r.cluster for r in val})


def _write_questions(folder: Path, asked: list[str]) -> None:
    judged = {"system": None, "answer": "x", "grader": "exact", "expected": "x"}
    lines = [json.dumps({"id": q, "question": q, **judged}) + "\n" for q in asked]
    (folder / "eval.jsonl").write_text("".join(lines))
