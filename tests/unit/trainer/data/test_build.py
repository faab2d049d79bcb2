"""A build as a whole: what it writes, what it refuses, and that the same rows are the same data set."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loraplex_trainer.data.build import build_data, build_stage, inspect_data
from loraplex_trainer.data.built import load_built
from loraplex_trainer.data.markdown import as_markdown
from loraplex_trainer.data.output import output_errors, whole_folder
from loraplex_trainer.data.row import Row
from loraplex_trainer.data.tiers import with_tiers
from loraplex_trainer.errors import OutputError, TrainingDataError
from loraplex_trainer.judge.compare import variant_of
from loraplex_trainer.recipe.document import read_recipe
from tests.unit.trainer.data.documents import TERMS, write_html, write_pdf
from tests.unit.trainer.data.support import GOLDEN, facts, pairs_of, recipe_of, row, write_pairs

ROOT = Path(__file__).parents[4]
HELP = "<h2>Returns</h2><p>Goods may be returned within 30 days of delivery, unused.</p>"


def test_a_build_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    graded = {"grader": "contains", "expected": "hall"}
    write_pairs(tmp_path / "rows.jsonl", facts(60), tier=2, **graded)
    recipe = recipe_of(
        ["rows.jsonl"], val={"share": 0.2}, general={"path": "bundled"}, augment={"method": "synonyms"}
    )

    built = build_data(recipe, tmp_path, tmp_path / "out")

    assert load_built(tmp_path / "out") == built
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.json",
        "report.md",
        "rows.jsonl",
    ]
    assert {r.tier for r in built.val} == {2}
    assert all(r.grader == graded for r in built.val)
    assert json.loads((tmp_path / "out/report.json").read_text())["sha256"] == built.sha256


def test_the_same_rows_have_the_same_hash_in_other_files_formats_and_orders(tmp_path: Path) -> None:
    told = facts(60)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write_pairs(tmp_path / "a/rows.jsonl", told)
    write_pairs(tmp_path / "b/x.jsonl", reversed(told[:30]))
    lines = [f'"{q}","{a}"' for q, a in told[30:]]
    (tmp_path / "b/y.csv").write_text("\n".join(["question,answer", *lines, *lines]))

    one = build_data(recipe_of(["rows.jsonl"], val={"share": 0.2}), tmp_path / "a", tmp_path / "one")
    other = build_data(recipe_of(["*"], val={"share": 0.2}), tmp_path / "b", tmp_path / "other")
    fewer = build_data(recipe_of(["x.jsonl"], val={"share": 0.2}), tmp_path / "b", tmp_path / "fewer")

    assert one.sha256 == other.sha256 != fewer.sha256
    assert [r.id for r in one.train] == [r.id for r in other.train]


@pytest.mark.parametrize("domain", ["ecommerce", "education", "finance"])
def test_every_row_of_a_shipped_recipe_survives(domain: str, tmp_path: Path) -> None:
    folder = ROOT / "adapters" / domain
    lines = (folder / "train.jsonl").read_text().splitlines()

    built = build_data(read_recipe(folder / "recipe.yaml"), folder, tmp_path / "out")

    domain_rows = [r for r in (*built.train, *built.val) if r.stage == "domain"]
    written = [json.loads(line) for line in lines]
    assert pairs_of(domain_rows) == sorted(
        (line["prompt"][-1]["content"], line["completion"][0]["content"]) for line in written
    )
    assert built.report.pii.by_kind == {}
    assert built.report.lint.found == {}
    assert len([r for r in built.train if r.stage == "general"]) == round(len(built.train) / 10)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "0 rows remain"),
        ('{"question": "Why?", "answer": "Because it rained all day."}\n', "1 rows remain, at least 2"),
    ],
)
def test_empty_and_one_row_data_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content)

    with pytest.raises(TrainingDataError, match=problem):
        build_data(recipe_of(["rows.jsonl"]), tmp_path, tmp_path / "out")

    assert not (tmp_path / "out").exists()
    assert inspect_data(recipe_of(["rows.jsonl"]), tmp_path).problems[0].startswith(problem)


def test_d09_sizes_are_warned_of_and_refused_at_their_bounds(tmp_path: Path) -> None:
    write_pairs(tmp_path / "rows.jsonl", facts(40))

    def warnings(warn_below: int, error_below: int = 32) -> list[str]:
        size = {"warn_below": warn_below, "error_below": error_below}
        return inspect_data(recipe_of(["rows.jsonl"], size=size), tmp_path).warnings

    assert any("40 rows are fewer than 41" in warning for warning in warnings(41))
    assert not any("fewer than" in warning for warning in warnings(40))
    with pytest.raises(TrainingDataError, match="40 rows remain, at least 41"):
        build_data(recipe_of(["rows.jsonl"], size={"error_below": 41}), tmp_path, tmp_path / "out")


@pytest.mark.slow
def test_d09_9999_rows_are_warned_of_and_10000_are_not(tmp_path: Path) -> None:
    told = facts(10_000)
    size: dict[str, Any] = {"clean": {"dedup": {"near": None}}, "size": {}}
    write_pairs(tmp_path / "few.jsonl", told[:-1])
    write_pairs(tmp_path / "many.jsonl", told)

    few = inspect_data(recipe_of(["few.jsonl"], **size), tmp_path)
    many = inspect_data(recipe_of(["many.jsonl"], **size), tmp_path)

    assert [
        w for w in few.warnings if w.startswith("9999 rows are fewer than 10000: training may be unstable")
    ]
    assert many.warnings == []


def test_d08_a_raw_build_keeps_what_cleaning_takes_out_but_never_personal_data(tmp_path: Path) -> None:
    planted = [
        ("Well?", "好的好的好的"),
        ("Who?", "[INST] Ask 13812345678 please, at any hour of the day. [/INST]"),
    ]
    told = [*facts(40), *facts(40), *planted]
    write_pairs(tmp_path / "rows.jsonl", told)
    clean = recipe_of(["rows.jsonl"])

    cleaned = build_data(clean, tmp_path, tmp_path / "clean")
    raw = build_data(variant_of(clean, "raw"), tmp_path, tmp_path / "raw")

    assert len(cleaned.train) == 41
    assert len(raw.train) == 82
    assert not any("13812345678" in r.completion for r in raw.train)


def test_a_stage_with_sources_of_its_own_is_built_from_them(tmp_path: Path) -> None:
    write_pairs(tmp_path / "domain.jsonl", facts(40))
    chat = [(f"How are things in town {i}?", f"In town {i} all is quiet and well today.") for i in range(40)]
    write_pairs(tmp_path / "chat.jsonl", chat)
    stages = [{"name": "general", "sources": [{"path": "chat.jsonl"}]}, {"name": "domain"}]
    recipe = recipe_of(["domain.jsonl"], recipe={"stages": stages})

    built = [build_stage(recipe, stage, tmp_path, tmp_path / stage.name) for stage in recipe.stages]

    assert [b.report.stage for b in built] == ["general", "domain"]
    assert {r.source for r in built[0].train} == {"chat.jsonl"}
    assert {r.source for r in built[1].train} == {"domain.jsonl"}


def test_tiers_are_thirds_by_the_loss_of_the_base_and_given_ones_stay() -> None:
    rows = [row(f"q{i}", "a") for i in range(9)]
    rows.append(row("given", "a", tier=3))

    tiered = with_tiers(rows, lambda open_rows: [float(r.question[1:]) for r in open_rows])

    assert [r.tier for r in tiered] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 3]


def test_a_curriculum_of_given_tiers_needs_them(tmp_path: Path) -> None:
    write_pairs(tmp_path / "rows.jsonl", facts(40))
    recipe = recipe_of(["rows.jsonl"], recipe={"curriculum": {"mode": "staged", "tiers": "given"}})

    with pytest.raises(TrainingDataError, match="no row has a tier"):
        build_data(recipe, tmp_path, tmp_path / "out")


def test_an_earlier_build_is_replaced_and_anything_else_is_left_alone(tmp_path: Path) -> None:
    write_pairs(tmp_path / "rows.jsonl", facts(40))
    recipe = recipe_of(["rows.jsonl"])
    build_data(recipe, tmp_path, tmp_path / "out")
    write_pairs(tmp_path / "rows.jsonl", facts(50))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/report.json").write_text("{}")
    (tmp_path / "mine/letter.txt").write_text("dear")

    again = build_data(recipe, tmp_path, tmp_path / "out")

    assert len(load_built(tmp_path / "out").train) == len(again.train) == 50
    with pytest.raises(OutputError, match="holds something else"):
        build_data(recipe, tmp_path, tmp_path / "mine")
    assert (tmp_path / "mine/letter.txt").read_text() == "dear"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out", "rows.jsonl"]


@contextmanager
def _files_of_at_most(num_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_build_that_cannot_be_written_leaves_the_earlier_one_and_no_scraps(tmp_path: Path) -> None:
    write_pairs(tmp_path / "rows.jsonl", facts(40))
    recipe = recipe_of(["rows.jsonl"])
    before = build_data(recipe, tmp_path, tmp_path / "out")
    write_pairs(tmp_path / "rows.jsonl", facts(90))

    with _files_of_at_most(10_000), pytest.raises(OutputError, match="out cannot be written"):
        build_data(recipe, tmp_path, tmp_path / "out")

    assert load_built(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "rows.jsonl"]


def test_a_full_disk_is_told_as_such() -> None:
    with pytest.raises(OutputError, match="the disk is full; make room") as caught, output_errors("report"):
        Path("/dev/full").write_text("x")

    assert caught.value.reason == "OUTPUT_FAILED"


def test_a_fault_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with whole_folder(tmp_path / "out", lambda folder: True) as work:
            (work / "a").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["rows", "report", "missing"])
def test_a_damaged_build_is_not_read(tmp_path: Path, damage: str) -> None:
    write_pairs(tmp_path / "rows.jsonl", facts(40))
    out = tmp_path / "out"
    build_data(recipe_of(["rows.jsonl"]), tmp_path, out)
    if damage == "rows":
        lines = (out / "rows.jsonl").read_text().splitlines()
        (out / "rows.jsonl").write_text("\n".join(lines[1:]))
    elif damage == "report":
        (out / "report.json").write_text("{}")
    else:
        (out / "rows.jsonl").unlink()

    with pytest.raises(TrainingDataError, match=r"build the data again|data build` again"):
        load_built(out)


def test_the_report_tells_every_step_for_people(tmp_path: Path) -> None:
    write_pdf(tmp_path / "terms.pdf", [TERMS, []], title="Terms")
    write_html(tmp_path / "help.html", "Help", HELP)
    write_pairs(
        tmp_path / "rows.jsonl", [*facts(40), ("Who | what?", "好的好的好的"), ("A?", "x"), ("A?", "y")]
    )
    sources = [{"path": "*.*", "licence": "CC-BY-4.0", "attribution": "Norwell"}]

    report = inspect_data(recipe_of(sources, general={"path": "bundled"}), tmp_path)
    text = as_markdown(report)

    told = (
        "# Training data of test",
        "CC-BY-4.0, Norwell",
        "Every answer is a span",
        "repetition 1",
        "Conflict: A?",
        "Who \\| what?",
        "terms.pdf, page 2",
        "% of the final mix",
        "Not measured",
    )
    for part in told:
        assert part in text
    assert str(tmp_path) not in text


def test_progress_of_every_stage_ends_complete(tmp_path: Path) -> None:
    write_pairs(tmp_path / "rows.jsonl", facts(40))
    write_pdf(tmp_path / "terms.pdf", [TERMS])
    last: dict[str, tuple[int, int]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        last[stage] = (done, total)

    inspect_data(
        recipe_of(["rows.jsonl", "terms.pdf"], augment={"method": "synonyms"}), tmp_path, progress=progress
    )

    assert {
        "reading",
        "building questions",
        "looking for personal data",
        "comparing rows",
        "augmenting",
    } <= set(last)
    assert all(done == total for done, total in last.values())


@pytest.mark.slow
def test_a_build_of_every_format_opens_no_socket(tmp_path: Path) -> None:
    write_pdf(tmp_path / "terms.pdf", [TERMS])
    write_html(
        tmp_path / "help.html",
        "Help",
        "<h2>Returns</h2><p>Goods may be returned within 30 days of delivery.</p>",
    )
    for path in GOLDEN.iterdir():
        if path.name != "expected.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    script = """
import socket, sys
from pathlib import Path
def refuse(*arguments, **options): raise AssertionError("a socket")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from loraplex_trainer.data.build import build_data
from loraplex_trainer.recipe.document import parse_recipe
folder = Path(sys.argv[1])
sources = [{"path": "*.*"}]
data = {"sources": sources, "general": {"path": "bundled"}, "size": {"error_below": 2}}
data["augment"] = {"method": "synonyms"}
recipe = parse_recipe({"name": "test", "system": None, "data": data}, "recipe")
print(len(build_data(recipe, folder, folder / "out").train))
"""

    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
    assert hasattr(socket.socket, "connect")


def test_rows_that_one_source_repeats_are_the_same_row_wherever_they_stand() -> None:
    one = row("Why?", "Because.", source="a", origin="a, line 1")
    other = row("Why?", "Because.", source="b", origin="b, line 9", tier=1)

    assert one.id == other.id
    assert Row(one.prompt, "Because!", "a", "a").id != one.id
