"""D06: personal data is masked or its rows dropped; reports hold counts and salted hashes, never a value."""

from __future__ import annotations

import json
import random
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex_trainer.data.build import inspect_data
from loraplex_trainer.data.markdown import as_markdown
from loraplex_trainer.data.pii import clean_rows, mask_text
from loraplex_trainer.data.pii_patterns import is_id18, luhn, personal_data
from tests.unit.trainer.data.support import facts, recipe_of, row, write_pairs

MOBILE = "13812345678"
ID18 = "11010519491231002X"
ID15 = "110105491231002"
CARD = "6222021234567894"


def _kinds(text: str) -> list[str]:
    return [found.kind for found in personal_data(text)]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"我的手机是{MOBILE}。", "我的手机是<手机号>。"),
        ("Call 138 1234 5678 now", "Call <PHONE> now"),
        ("电话 138-1234-5678", "电话 <手机号>"),
        ("电话 １３８１２３４５６７８", "电话 <手机号>"),
        ("电话 1 3 8 1 2 3 4 5 6 7 8", "电话 <手机号>"),
        ("电话 +86 138 1234 5678", "电话 <电话号码>"),
        ("电话 008613812345678", "电话 <手机号>"),
        (f"身份证{ID18}", "身份证<身份证号>"),
        ("身份证110105 19491231 002x", "身份证<身份证号>"),
        ("身份证１１０１０５１９４９１２３１００２Ｘ", "身份证<身份证号>"),
        (f"旧证 {ID15} 有效", "旧证 <身份证号> 有效"),
        (f"卡号{CARD}。", "卡号<银行卡号>。"),
        ("card 4111 1111 1111 1111", "card <CARD_NUMBER>"),
        ("card 5555-5555-5555-4444", "card <CARD_NUMBER>"),
        ("Write to jane.doe+x@mail.example.com.", "Write to <EMAIL>."),
        ("邮箱ｚｈａｎｇ＠ｅｘａｍｐｌｅ．ｃｏｍ", "邮箱<邮箱>"),
        ("客服邮箱help@example.cn请联系", "客服邮箱<邮箱>请联系"),
        ("Ring +44 20 7946 0958 or +1 202-456-1111.", "Ring <PHONE> or <PHONE>."),
        ("from 203.0.113.7:80", "from <IP_ADDRESS>:80"),
    ],
)
def test_d06_personal_data_in_every_form_is_masked(text: str, masked: str) -> None:
    assert mask_text(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "Order 20240815123456 is on its way",
        "订单号 202408151234567890 已发货",
        "身份证 110105194912310021",  # wrong check digit
        "身份证 11010519491331002X",  # no such month
        "card 4111 1111 1111 1112",  # Luhn fails
        "13 14 15 16 17 18",
        "numbers 12345678901",
        "ratio 1.3812345678",
        "version 10.2.300.4 or 1.2.3.4.5",
        "listen on 127.0.0.1 and 0.0.0.0",
        "serial AB13812345678",
        "pay 13,812,345,678 dollars",
        "user@localhost",
        "Article number XJ-6993, 2.40 percent, room A168",
        "ISBN 9783161484100",
    ],
)
def test_d06_order_numbers_and_other_figures_stay(text: str) -> None:
    assert mask_text(text) == text


birthdays = st.dates(date(1930, 1, 1), date(2015, 12, 31))


@given(birthdays, st.sampled_from(["110105", "440301", "510104", "820000"]), st.integers(0, 999))
def test_d06_every_identity_number_with_its_check_character_is_found_and_no_other(
    born: date, region: str, order: int
) -> None:
    stem = f"{region}{born:%Y%m%d}{order:03d}"
    right = [c for c in "0123456789X" if is_id18(stem + c)]

    assert len(right) == 1
    for check in "0123456789X":
        assert ("id" in _kinds(f"号码{stem}{check}，请核对")) == (check in right)


@given(
    st.from_regex(r"1[3-9][0-9]{9}", fullmatch=True),
    st.sampled_from(["{}", "电话{}。", "({})", "{},", "a {} b"]),
)
def test_d06_every_mobile_number_is_masked_and_its_digits_are_gone(number: str, around: str) -> None:
    spaced = f"{number[:3]} {number[3:7]} {number[7:]}"

    for form in (number, spaced, spaced.replace(" ", "-"), "+86" + number):
        masked = mask_text(around.format(form))

        assert not any(c.isdigit() for c in masked)


@given(st.from_regex(r"62[0-9]{13}", fullmatch=True))
def test_d06_a_card_is_one_only_with_its_check_digit(stem: str) -> None:
    for check in "0123456789":
        assert ("card" in _kinds(f"卡 {stem}{check}")) == luhn(stem + check)


@given(st.text(max_size=80))
def test_d06_masking_twice_is_masking_once(text: str) -> None:
    once = mask_text(text)

    assert mask_text(once) == once


def test_d06_rows_are_masked_or_dropped_and_counted_by_source() -> None:
    rows = [
        row("Who?", f"Ask {MOBILE} or {MOBILE}.", source="a.csv"),
        row("身份证？", f"号码是{ID18}。", source="b.csv"),
        row("Where?", "In the hall.", source="b.csv"),
    ]

    masked = clean_rows(rows, "mask")
    dropped = clean_rows(rows, "drop")

    assert [r.completion for r in masked.rows] == [
        "Ask <PHONE> or <PHONE>.",
        "号码是<身份证号>。",
        "In the hall.",
    ]
    assert masked.by_kind == {"mobile": 2, "id": 1}
    assert masked.by_source == {"a.csv": {"mobile": 2}, "b.csv": {"id": 1}}
    assert sorted(masked.values.values()) == [1, 2]
    assert dropped.rows == rows[2:]
    assert clean_rows(rows, "off").rows == rows


def test_d06_hashes_of_two_builds_differ_for_the_same_value() -> None:
    rows = [row("Who?", f"Ask {MOBILE}.")]

    assert clean_rows(rows, "mask").values.keys() != clean_rows(rows, "mask").values.keys()


def test_d06_what_is_expected_of_an_answer_is_masked_with_it() -> None:
    graded = row(
        "Who?", f"Ask {MOBILE}.", grader={"grader": "contains", "expected": MOBILE, "choices": [MOBILE, "x"]}
    )

    (masked,) = clean_rows([graded], "mask").rows

    assert masked.grader == {"grader": "contains", "expected": "<PHONE>", "choices": ["<PHONE>", "x"]}


@pytest.mark.parametrize("action", ["mask", "drop", "off"])
def test_d06_no_report_shows_a_value_whatever_the_recipe_does_with_rows(tmp_path: Path, action: str) -> None:
    rng = random.Random(5)
    numbers = [f"139{rng.randrange(10**8):08d}" for _ in range(40)]
    born = [date(1950, 1, 1) + timedelta(days=rng.randrange(20000)) for _ in range(40)]
    stems = [f"110105{day:%Y%m%d}{i:03d}" for i, day in enumerate(born)]
    ids = [stem + next(c for c in "0123456789X" if is_id18(stem + c)) for stem in stems]
    told = [
        (f"联系人{i}的电话是？", f"{number}，证件{card}")
        for i, (number, card) in enumerate(zip(numbers, ids, strict=True))
    ]
    write_pairs(tmp_path / "rows.jsonl", [*facts(60), *told, *told])

    report = inspect_data(recipe_of(["rows.jsonl"], clean={"pii": action}), tmp_path)

    shown = json.dumps(report.model_dump(mode="json"), ensure_ascii=False) + as_markdown(report)
    assert not any(value in shown for value in (*numbers, *ids))
    assert report.pii.by_kind == ({} if action == "off" else {"id": 80, "mobile": 80})
