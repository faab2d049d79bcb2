"""D11: general conversations are a tenth of the final mix; the bundled ones are right, varied and clean."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex_trainer.data.build import build_data
from loraplex_trainer.data.general import general_rows, num_general
from loraplex_trainer.data.general_rows.__main__ import conversations, general_text
from loraplex_trainer.data.held_out import HeldOut
from loraplex_trainer.data.lint import findings
from loraplex_trainer.data.pii_patterns import personal_data
from loraplex_trainer.data.text import match_key
from loraplex_trainer.errors import TrainingDataError
from loraplex_trainer.recipe.sections import GeneralSection
from tests.unit.trainer.data.support import facts, pairs_of, recipe_of, write_pairs

BUNDLED = GeneralSection(path="bundled")


@given(st.integers(0, 100_000), st.floats(0, 0.9))
def test_d11_the_count_makes_the_share_of_the_final_mix(num_train: int, share: float) -> None:
    count = num_general(num_train, share)

    assert abs(count - share * (num_train + count)) <= 0.5 + 1e-6


def test_d11_a_tenth_of_the_final_mix_is_general_and_none_of_it_is_validated_on(tmp_path: Path) -> None:
    write_pairs(tmp_path / "rows.jsonl", facts(100))
    recipe = recipe_of(
        ["rows.jsonl"], general={"path": "bundled", "share": 0.1}, val={"share": 0.1, "min": 0}
    )

    built = build_data(recipe, tmp_path, tmp_path / "out")

    general = [r for r in built.train if r.stage == "general"]
    assert len(general) == round(0.1 / 0.9 * 90) == 10
    assert {r.stage for r in built.train if r not in general} == {"domain"}
    assert {r.stage for r in built.val} == {"domain"}
    assert built.report.general.rows == 10
    assert built.report.general.share == pytest.approx(0.1)


def test_d11_another_seed_draws_others_and_the_same_seed_the_same(tmp_path: Path) -> None:
    write_pairs(tmp_path / "rows.jsonl", facts(100))

    def drawn(seed: int) -> list[tuple[str, str]]:
        recipe = recipe_of(["rows.jsonl"], general={"path": "bundled"}, recipe={"train": {"seed": seed}})
        built = build_data(recipe, tmp_path, tmp_path / "out")
        return pairs_of(r for r in built.train if r.stage == "general")

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_d11_a_short_general_file_is_used_again_and_that_is_told(tmp_path: Path) -> None:
    write_pairs(tmp_path / "rows.jsonl", facts(90))
    write_pairs(
        tmp_path / "small.jsonl", [("Is water wet?", "Most people say so."), ("Is fire hot?", "Yes, very.")]
    )
    recipe = recipe_of(["rows.jsonl"], general={"path": "small.jsonl", "share": 0.1})

    built = build_data(recipe, tmp_path, tmp_path / "out")

    general = [r.question for r in built.train if r.stage == "general"]
    assert sorted(general) == ["Is fire hot?"] * 5 + ["Is water wet?"] * 5
    assert any("some are repeated" in warning for warning in built.warnings)


def test_d11_a_general_row_that_is_held_out_is_never_drawn() -> None:
    everything = general_rows(BUNDLED, Path(), HeldOut(), set())
    asked = everything[0].question

    left = general_rows(BUNDLED, Path(), HeldOut(questions=[asked.upper()]), set())

    assert asked in {r.question for r in everything}
    assert match_key(asked) not in {match_key(r.question) for r in left}


def test_a_general_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match=r"no file is named 'none\.jsonl'"):
        general_rows(GeneralSection(path=Path("none.jsonl")), tmp_path, HeldOut(), set())


def test_the_bundled_file_is_what_its_sources_write() -> None:
    bundled = (files("loraplex_trainer.data") / "general.jsonl").read_text(encoding="utf-8")

    assert bundled == general_text()
    assert all(json.loads(line)["messages"] for line in bundled.splitlines())


def test_bundled_conversations_are_many_different_clean_and_short() -> None:
    rows = general_rows(BUNDLED, Path(), HeldOut(), set())
    questions = [turns[0] for turns in conversations()]

    assert len(rows) >= 400
    assert len({match_key(question) for question in questions}) == len(questions)
    assert all(findings(r) == () for r in rows)
    assert not any(personal_data(text) for r in rows for text in (r.question, r.completion))
    assert max(len(r.question) + len(r.completion) for r in rows) < 500
    assert sum("\nA. " in q and "\nD. " in q for q in questions) >= 50
    assert sum("yes or no" in q.lower() for q in questions) >= 30
    assert sum(any(c > "\u4e00" for c in q) for q in questions) >= 20


def test_bundled_answers_of_arithmetic_are_right() -> None:
    checked = 0
    for turns in conversations():
        for equation in re.findall(r"(\d+) ([+\-×÷]) (\d+) = (\d+)", turns[-1]):
            a, sign, b, result = equation
            value = {"+": int(a) + int(b), "-": int(a) - int(b), "×": int(a) * int(b), "÷": int(a) / int(b)}[
                sign
            ]
            assert value == int(result)
            checked += 1

    assert checked >= 40


def test_bundled_choices_name_one_of_their_options() -> None:
    lettered = [turns for turns in conversations() if "\nA. " in turns[0]]

    for question, answer in lettered:
        options = dict(re.findall(r"\n([A-D])\. (.+)", question))
        letter = re.findall(r"\b([A-D])\b", answer)[0]
        assert list(options) == ["A", "B", "C", "D"]
        assert answer == letter or options[letter] in answer
    assert {re.findall(r"\b([A-D])\b", answer)[0] for _, answer in lettered} == {"A", "B", "C", "D"}
