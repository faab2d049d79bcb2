"""D10: new questions for the same answers, in training alone, with everything protected left as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex_trainer.data.augment import usable_paraphrase
from loraplex_trainer.data.build import build_data
from loraplex_trainer.data.protected import protected_spans
from loraplex_trainer.data.synonyms import read_lexicon, synonym_questions
from loraplex_trainer.data.text import match_key
from loraplex_trainer.errors import RecipeError, TrainingDataError
from tests.unit.trainer.data.support import recipe_of, write_pairs

LEXICON = read_lexicon(None)
THINGS = ("lamp", "kettle", "violin", "printer", "ladder", "tent", "compass", "blender", "saddle", "globe")
PRICES = [
    (f"What is the price of the {thing} in hall {hall}?", f"In hall {hall} you pay {3 * hall} dollars for it.")
    for thing in THINGS
    for hall in (11, 12, 13, 14)
]  # fmt: skip


def test_d10_synonyms_make_up_to_factor_questions_for_training_rows_alone(tmp_path: Path) -> None:
    write_pairs(tmp_path / "rows.jsonl", PRICES)
    recipe = recipe_of(
        ["rows.jsonl"], augment={"method": "synonyms", "factor": 2}, val={"share": 0.2, "min": 0}
    )

    built = build_data(recipe, tmp_path, tmp_path / "out")

    new = [r for r in built.train if r.parent]
    own = {r.id: r for r in built.train if not r.parent}
    assert len(own) == 32
    assert len(new) == built.report.augment.rows > 20
    assert all(r.parent is None for r in built.val)
    val_questions = {match_key(r.question) for r in built.val}
    counts = dict.fromkeys(own, 0)
    for r in new:
        parent = own[str(r.parent)]
        counts[parent.id] += 1
        assert r.completion == parent.completion
        assert r.question != parent.question
        assert match_key(r.question) not in val_questions
    assert max(counts.values()) <= 2


@pytest.mark.parametrize(
    ("question", "kept"),
    [
        ("How much is the fee of Garrick Bank for 3 months?", ["Garrick Bank", "3 months"]),
        ("Which products are not allowed in hall A168?", ["not", "A168"]),
        ("What does “fee” mean in the contract?", ["“fee”"]),
        ("购买后7天内不可以取消吗？", ["7天", "不可以"]),
        ("《合同》中的费用为什么没有说明？", ["《合同》", "没有"]),
        ("Can't the customer cancel order XJ-6993?", ["Can't", "XJ-6993"]),
    ],
)
def test_d10_numbers_units_names_quotes_and_negations_are_left_as_they_are(
    question: str, kept: list[str]
) -> None:
    found = synonym_questions(question, "", LEXICON, 10, "seed")

    assert found
    for new in found:
        assert new != question
        assert all(part in new for part in kept)


def test_d10_words_that_the_answer_uses_are_left_as_they_are() -> None:
    assert synonym_questions("What is the price?", "It costs 12.", LEXICON, 3, "seed") == [
        "What is the cost?"
    ]
    assert synonym_questions("What is the price?", "The price is 12.", LEXICON, 3, "seed") == []


@given(
    st.lists(
        st.sampled_from([*sorted(LEXICON), "not", "7", "Bexwell", "不", "hall", "，", "12 kg"]),
        min_size=1,
        max_size=10,
    ),
    st.integers(1, 4),
)
def test_d10_rewriting_never_touches_a_protected_span(words: list[str], count: int) -> None:
    question = " ".join(words)
    protected = [question[start:end] for start, end in protected_spans(question)]

    found = synonym_questions(question, "", LEXICON, count, "seed")

    assert len(found) <= count
    assert len({match_key(new) for new in found}) == len(found)
    for new in found:
        for part in sorted(set(protected)):
            assert new.count(part) >= question.count(part), (part, new)
    assert found == synonym_questions(question, "", LEXICON, count, "seed")


def test_d10_a_lexicon_of_the_team_is_read_and_a_broken_line_named(tmp_path: Path) -> None:
    (tmp_path / "own.tsv").write_text("# ours\nwidget\tgadget\tdevice\n", encoding="utf-8")
    (tmp_path / "bad.tsv").write_text("widget gadget\n", encoding="utf-8")

    own = read_lexicon(tmp_path / "own.tsv")

    assert set(synonym_questions("Which widget?", "", own, 5, "s")) == {"Which gadget?", "Which device?"}
    with pytest.raises(TrainingDataError, match=r"bad\.tsv, line 1"):
        read_lexicon(tmp_path / "bad.tsv")


@pytest.mark.parametrize(
    ("reply", "usable"),
    [
        ("In hall 12, what does the lamp cost?", True),
        ("“In hall 12, what does the lamp cost?”\nHope this helps!", True),
        ("What is the price of the lamp in hall 13?", False),  # another number
        ("What is the price of the lamp?", False),  # the number is lost
        ("What is not the price of the lamp in hall 12?", False),  # negated
        ("what is the price of the lamp in hall 12", False),  # the same words
        ("12号厅的灯多少钱？", False),  # another language
        ("It costs 12.", False),  # no question
        ("", False),
    ],
)
def test_d10_a_paraphrase_is_taken_only_with_all_that_is_protected(reply: str, usable: bool) -> None:
    question = "What is the price of the lamp in hall 12?"

    assert (usable_paraphrase(reply, question) is not None) == usable


def test_d10_paraphrases_come_from_the_model_that_is_asked(tmp_path: Path) -> None:
    write_pairs(tmp_path / "rows.jsonl", PRICES)
    recipe = recipe_of(["rows.jsonl"], augment={"method": "paraphrase", "factor": 1})
    asked = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        question = next(line for line in prompt.splitlines() if line.startswith("Question: "))
        return question.removeprefix("Question: ").replace("What is the price of", "How many dollars buy")

    built = build_data(recipe, tmp_path, tmp_path / "out", ask=ask)

    assert len(asked) == 40
    assert built.report.augment.rows == 40
    assert sum("How many dollars buy" in r.question for r in built.train) == 40


def test_d10_a_paraphrase_without_a_server_is_an_error_of_the_recipe(tmp_path: Path) -> None:
    write_pairs(tmp_path / "rows.jsonl", PRICES)

    with pytest.raises(RecipeError, match="server"):
        build_data(recipe_of(["rows.jsonl"], augment={"method": "paraphrase"}), tmp_path, tmp_path / "out")
