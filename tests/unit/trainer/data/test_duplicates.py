"""D05: duplicates go, conflicts are told, and what belongs together is one cluster."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from loraplex_trainer.data.build import inspect_data
from loraplex_trainer.data.duplicates import conflicts, deduplicate
from loraplex_trainer.data.near import NearIndex, similarity
from loraplex_trainer.data.row import Message, Row
from loraplex_trainer.data.split import split_rows
from loraplex_trainer.data.text import match_key
from loraplex_trainer.recipe.sections import CleanSection, ValSection
from tests.unit.trainer.data.support import facts, pairs_of, recipe_of, row

CLEAN = CleanSection()
EXACT_ONLY = CleanSection.model_validate({"dedup": {"near": None}})
OFF = CleanSection.model_validate({"dedup": {"exact": False, "near": None}})
TICKETS = [
    ("The printer shows no paper", "Fill the tray and close it until it clicks."),
    ("My screen stays dark", "Check the cable and press the power button for ten seconds."),
    ("电脑无法开机怎么办", "请先检查电源线是否插好，再长按电源键十秒。"),
    ("网络连接很慢", "请重启路由器，并尽量靠近信号源使用。"),
    ("The mouse does not move", "Replace the batteries or try another port."),
    ("I forgot my password", "Use the link below the form to set a new one."),
    ("Sound is missing", "Raise the volume and choose the right output."),
    ("软件无法安装", "请确认磁盘空间充足，并以管理员身份运行安装程序。"),
    ("The battery empties fast", "Lower the brightness and close unused programs."),
    ("Files have vanished", "Look into the trash, then restore the last backup."),
]


def test_d05_a_corpus_of_1050_rows_that_are_ten_becomes_ten(tmp_path: Path) -> None:
    rng = random.Random(3)
    forms = [
        [q.upper() if rng.random() < 0.2 else q + rng.choice(("", ".", " !", "。")), a.replace(",", " ,")]
        for q, a in TICKETS
        for _ in range(105)
    ]
    rng.shuffle(forms)
    (tmp_path / "support.yml").write_text(
        yaml.safe_dump({"conversations": forms}, allow_unicode=True), "utf-8"
    )

    report = inspect_data(recipe_of(["support.yml"]), tmp_path)

    assert report.files[0].rows == 1050
    assert report.split.train == 10
    assert report.duplicates.exact + report.duplicates.near == 1040
    assert {example.note for example in report.duplicates.largest} == {"stands for 105 rows"}


ENGLISH = "The seller must deliver the goods to the buyer within the agreed time."
CHINESE = "民事主体从事民事活动应当遵循自愿原则并且按照自己的意思设立和变更以及终止民事法律关系"


@pytest.mark.parametrize(
    ("one", "other"),
    [(ENGLISH, ENGLISH.replace("time", "times")), (CHINESE, CHINESE.replace("原则", "原则，") + "的")],
)
def test_d05_near_duplicates_are_found_in_english_and_chinese(one: str, other: str) -> None:
    rows = [row("What is said?", one), row("What is said?", other)]

    result = deduplicate(rows, CLEAN)

    assert match_key(one) != match_key(other)
    assert (len(result.rows), result.exact, result.near) == (1, 0, 1)
    assert len(deduplicate(rows, EXACT_ONLY).rows) == 2


def test_d05_texts_with_other_numbers_are_other_facts() -> None:
    rows = [
        row(
            f"How high is the monthly fee of the account number {i}?",
            f"The monthly fee of it is {i} dollars and 20 cents.",
        )
        for i in range(20)
    ]

    assert len(deduplicate(rows, CLEAN).rows) == 20


def test_d05_a_point_within_a_number_tells_rows_apart() -> None:
    rows = [row("Which rate?", "It is 2.40 percent."), row("Which rate?", "It is 240 percent.")]

    assert len(deduplicate(rows, EXACT_ONLY).rows) == 2


def test_d05_one_question_with_two_answers_is_a_conflict_and_one_cluster() -> None:
    rows = [
        row("How long may goods be returned?", "Within 14 days of delivery."),
        row("how long may goods be returned", "Goods can be brought back for a whole month."),
        row("Who pays the postage?", "The buyer does."),
    ]

    kept = deduplicate(rows, CLEAN)
    dropped = deduplicate(rows, CleanSection(conflicts="drop"))

    assert [len(group) for group in kept.conflicts] == [2]
    assert len(kept.rows) == 3
    assert len({r.cluster for r in kept.rows}) == 2
    assert pairs_of(dropped.rows) == [("Who pays the postage?", "The buyer does.")]
    assert dropped.conflicts_dropped == 2


def test_d05_rows_over_one_span_of_a_document_are_one_cluster() -> None:
    rows = [
        row("What is said of returns?", "Goods go back.", evidence="Goods go back. Really."),
        row("May I return it?", "Goods go back.", evidence="Goods go back. Really."),
    ]

    assert len({r.cluster for r in deduplicate(rows, CLEAN).rows}) == 1


words = st.sampled_from(
    ["harbour", "lantern", "meadow", "signal", "copper", "orchard", "window", "河流", "山谷", "城市", "灯塔"]
)
sentences = st.lists(words, min_size=3, max_size=9).map(" ".join)
several_rows = st.lists(st.builds(row, sentences, sentences), min_size=1, max_size=25)


@settings(max_examples=25)
@given(several_rows, st.randoms(use_true_random=False), st.sampled_from([CLEAN, EXACT_ONLY, OFF]))
def test_d05_the_order_of_rows_decides_nothing(
    rows: list[Row], rng: random.Random, clean: CleanSection
) -> None:
    shuffled = list(rows)
    rng.shuffle(shuffled)

    one, other = deduplicate(rows, clean), deduplicate(shuffled, clean)

    assert sorted((r.id, str(r.cluster)) for r in one.rows) == sorted(
        (r.id, str(r.cluster)) for r in other.rows
    )
    assert (one.exact, one.near) == (other.exact, other.near)
    assert len(one.rows) + one.exact + one.near == len(rows)


@given(several_rows, st.floats(0.1, 0.6))
def test_d05_no_cluster_spans_the_split(rows: list[Row], share: float) -> None:
    kept = deduplicate(rows, OFF).rows

    train, val = split_rows(kept, ValSection(share=share, min=0))

    assert {r.cluster for r in train}.isdisjoint({r.cluster for r in val})
    assert {match_key(r.question) for r in train}.isdisjoint({match_key(r.question) for r in val})
    assert sorted(r.id for r in [*train, *val]) == sorted(r.id for r in rows)


@settings(max_examples=25)
@given(st.lists(sentences, min_size=2, max_size=20, unique=True))
def test_d05_pairs_are_similar_by_their_grams_and_identical_texts_are_always_found(texts: list[str]) -> None:
    pairs = list(NearIndex([*texts, texts[0]], 0.85).pairs())

    assert (0, len(texts)) in pairs
    assert all(similarity([*texts, texts[0]][i], [*texts, texts[0]][j]) >= 0.85 for i, j in pairs)


def test_conflicts_are_not_seen_between_different_conversations() -> None:
    turns: tuple[Message, ...] = (
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "And?"},
    )
    long = Row(prompt=turns, completion="Two.", source="a", origin="a")

    assert conflicts([long, row("And?", "Three.")]) == []


def test_distinct_facts_all_survive() -> None:
    rows = [row(q, a) for q, a in facts(300)]

    assert len(deduplicate(rows, CLEAN).rows) == 300
