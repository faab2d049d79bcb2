"""D01: every format of questions and answers becomes the same rows; what cannot is rejected with place and reason."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from loraplex_trainer.data.conversation import BadRecordError, Rejected, rows_of
from loraplex_trainer.data.progress import silent
from loraplex_trainer.data.readers.sources import FileRead, read_file, read_sources
from loraplex_trainer.data.row import Row
from loraplex_trainer.errors import TrainingDataError
from loraplex_trainer.recipe.sections import SourceSection
from tests.unit.trainer.data.support import GOLDEN, pairs_of

EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))


def _read(path: Path, format: str = "auto") -> FileRead:
    return read_file(SourceSection.model_validate({"path": path.name, "format": format}), path)


def _rows(read: FileRead) -> tuple[list[Row], list[Rejected]]:
    rows: list[Row] = []
    rejected = list(read.rejected)
    for conversation in read.conversations:
        try:
            rows += rows_of(conversation)[0]
        except BadRecordError as error:
            rejected.append(Rejected(conversation.origin, str(error)))
    return rows, rejected


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_d01_a_file_of_each_format_gives_the_golden_rows_and_rejections(name: str) -> None:
    rows, rejected = _rows(_read(GOLDEN / name))

    assert [[[m["content"] for m in row.prompt], row.completion, row.tier] for row in rows] == EXPECTED[name][
        "rows"
    ]
    assert sorted([item.origin, item.reason] for item in rejected) == sorted(EXPECTED[name]["rejected"])
    assert all(m["role"] != "system" for row in rows for m in row.prompt)
    assert all(str(GOLDEN) not in row.origin and row.origin.startswith(name) for row in rows)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ("number,12 dollars,", "not one plain number"),
        ("vibes,12,", "'vibes' is none of"),
        ("choice,red,red|blue", "choices is not a list"),
    ],
)
def test_d01_a_grader_that_cannot_judge_is_rejected_with_its_line(
    tmp_path: Path, cells: str, reason: str
) -> None:
    (tmp_path / "rows.csv").write_text(f"question,answer,grader,expected,choices\nWhy?,So.,{cells}\n")

    read = _read(tmp_path / "rows.csv")

    assert read.conversations == []
    assert [rejected.origin for rejected in read.rejected] == ["rows.csv, line 2"]
    assert reason in read.rejected[0].reason


def test_d01_a_grader_of_the_source_stays_with_its_row() -> None:
    rows, _ = _rows(_read(GOLDEN / "messages.jsonl"))

    assert [row.grader for row in rows] == [None, {"grader": "contains", "expected": "A168"}]


def test_d01_rows_of_one_conversation_share_a_cluster() -> None:
    rows, _ = _rows(_read(GOLDEN / "sharegpt.json"))

    assert rows[0].cluster is not None
    assert rows[0].cluster == rows[1].cluster


def test_d01_a_parquet_file_of_messages_gives_its_rows(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "The warden."}]
    parquet.write_table(pyarrow.table({"messages": [messages, messages]}), tmp_path / "rows.parquet")

    rows, rejected = _rows(_read(tmp_path / "rows.parquet"))

    assert [(row.question, row.completion, row.origin) for row in rows] == [
        ("Who?", "The warden.", "rows.parquet, row 1"),
        ("Who?", "The warden.", "rows.parquet, row 2"),
    ]
    assert rejected == []


text = st.text("abcxyz甲乙丙 ,.'\"", min_size=1, max_size=30).map(lambda s: f"w{s}w".replace("  ", " "))
pairs = st.lists(st.tuples(text, text), min_size=1, max_size=6)


@settings(max_examples=30)
@given(pairs)
def test_d01_the_same_pairs_give_the_same_rows_in_every_format(
    tmp_path_factory: pytest.TempPathFactory, content: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("formats")
    forms: dict[str, list[dict[str, Any]]] = {
        "a.jsonl": [{"instruction": q, "output": a} for q, a in content],
        "b.jsonl": [
            {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}
            for q, a in content
        ],
        "c.jsonl": [
            {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
            for q, a in content
        ],
        "d.jsonl": [{"prompt": q, "completion": a} for q, a in content],
    }
    for name, records in forms.items():
        (folder / name).write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    with (folder / "e.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("question", "answer"), *content])
    parquet.write_table(
        pyarrow.table({"question": [q for q, _ in content], "answer": [a for _, a in content]}),
        folder / "f.parquet",
    )
    (folder / "g.yaml").write_text(
        yaml.safe_dump({"conversations": [list(p) for p in content]}), encoding="utf-8"
    )

    read = [_rows(_read(path)) for path in sorted(folder.iterdir())]

    assert all(rejected == [] for _, rejected in read)
    assert all(pairs_of(rows) == pairs_of(read[0][0]) for rows, _ in read)
    assert len(read[0][0]) == len(content)


def test_a_named_format_rejects_records_of_another() -> None:
    read = _read(GOLDEN / "messages.jsonl", "alpaca")

    assert read.conversations == []
    assert {item.reason for item in read.rejected} == {"instruction is not text", "not JSON"}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.txt", b"", "the file is empty"),
        ("list.json", b'[{"a": 1}', "the file is not valid JSON"),
        ("broken.yaml", b"a: [1, 2", "not valid YAML"),
        ("bare.yaml", b"a: 1", "the YAML has no list of conversations"),
        ("table.csv", b"", "the table is empty"),
        ("table.parquet", b"PAR1nonsense", "the file is not valid Parquet"),
        ("binary.txt", b"\x00\x01\xff\xfe\x00" * 40, "the file is not text"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)

    read = _read(tmp_path / name)

    assert read.unreadable is not None
    assert read.unreadable.startswith(reason)
    assert [item.origin for item in read.rejected] == [name]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_chinese_text_is_read_in_each_encoding_that_teams_use(tmp_path: Path, encoding: str) -> None:
    content = "问：快递什么时候到？\n答：一般三天之内送达，节假日顺延。\n"
    (tmp_path / "faq.txt").write_bytes(content.encode(encoding))

    rows, _ = _rows(_read(tmp_path / "faq.txt"))

    assert pairs_of(rows) == [("快递什么时候到？", "一般三天之内送达，节假日顺延。")]


def test_western_text_of_before_utf8_is_read(tmp_path: Path) -> None:
    content = "question,answer\nWo ist das Büro?,Das Büro ist im ersten Stock über der Bäckerei.\n"
    (tmp_path / "faq.csv").write_bytes(content.encode("windows-1252"))

    rows, _ = _rows(_read(tmp_path / "faq.csv"))

    assert pairs_of(rows) == [("Wo ist das Büro?", "Das Büro ist im ersten Stock über der Bäckerei.")]


def test_full_width_digits_become_plain_and_chinese_punctuation_stays(tmp_path: Path) -> None:
    (tmp_path / "faq.txt").write_text("问：费用是多少，元？\n答：１２元，每月ＡＢ卡。", encoding="utf-8")

    rows, _ = _rows(_read(tmp_path / "faq.txt"))

    assert pairs_of(rows) == [("费用是多少，元？", "12元，每月AB卡。")]


def test_a_pattern_reads_every_file_once_and_a_source_without_files_is_an_error(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text(f"Q: Which {name}?\nA: The file {name}.", encoding="utf-8")
    sources = [SourceSection(path="*.txt"), SourceSection(path="a.txt")]

    read = read_sources(sources, tmp_path, silent)

    assert [file.file for file in read] == ["a.txt", "b.txt"]
    with pytest.raises(TrainingDataError, match=r"no file is named 'c\.txt'"):
        read_sources([SourceSection(path="c.txt")], tmp_path, silent)
    with pytest.raises(TrainingDataError, match="is a folder"):
        read_sources([SourceSection(path=".")], tmp_path, silent)


@settings(max_examples=60)
@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_rejected_and_never_crash(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("any")
    for name in ("x.jsonl", "x.csv", "x.yaml", "x.txt", "x", "x.parquet"):
        path = folder / name
        path.write_bytes(content)

        read = _read(path)

        assert (
            read.conversations
            or read.documents
            or read.rejected
            or not content.strip()
            or read.unreadable is None
        )
        _rows(read)
