"""A job's recipe is refused with every wrong field at once, and reaches nothing beyond its own files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from loraplex_server.training.messages import Checked, CheckOrder, LibraryMissing
from loraplex_trainer.jobs import check as check_module
from loraplex_trainer.jobs.check import check, read_job_recipe
from loraplex_trainer.jobs.recipe_files import found_files, named_files, problem_of_pattern
from loraplex_trainer.recipe.document import parse_recipe

FINGERPRINT = "f" * 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A job's files."""
    (tmp_path / "job" / "data").mkdir(parents=True)
    (tmp_path / "job" / "data" / "a.jsonl").write_text("{}")
    (tmp_path / "secret.txt").write_text("not the job's")
    return tmp_path / "job"


def recipe(**fields: Any) -> dict[str, Any]:
    return {"name": "faq", "system": None, "data": {"sources": [{"path": "data/*.jsonl"}]}, **fields}


def checked(folder: Path, content: Any, **fields: Any) -> Checked:
    order = CheckOrder(
        **{
            "recipe": content if isinstance(content, str) else yaml.safe_dump(content),
            "tenant": "team",
            "folder": str(folder),
            "base_id": "base",
            "base_fingerprint": FINGERPRINT,
            "max_rank": 64,
            **fields,
        }
    )
    answer = check(order)
    assert isinstance(answer, Checked)
    return answer


def wrong_fields(folder: Path, content: Any) -> list[str]:
    return [violation.field for violation in checked(folder, content).violations]


def test_a_sound_recipe_is_taken(folder: Path) -> None:
    good = recipe(base={"model": "base", "fingerprint": FINGERPRINT}, tenant="team")

    assert checked(folder, good) == Checked([], "faq", "auto")


def test_every_wrong_field_is_named_at_once(folder: Path) -> None:
    wrong = recipe(tenant="other", lora={"rank": 0}, train={"seed": -1, "colour": "red"}, method="magic")

    assert set(wrong_fields(folder, wrong)) == {
        "tenant",
        "method",
        "lora.rank",
        "train.seed",
        "train.colour",
    }


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "just words", "a: !!python/object:os.system x"])
def test_what_is_no_recipe_is_refused(folder: Path, text: str) -> None:
    assert wrong_fields(folder, text) == [""]


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"base": {"model": "other"}}, "base.model"),
        ({"base": {"fingerprint": "0" * 64}}, "base.fingerprint"),
        ({"resources": {"yield_to": "10.0.0.1:1"}}, "resources.yield_to"),
        ({"lora": {"rank": 128}}, "lora.rank"),
        ({"eval": {"domain": "/etc/passwd"}}, "eval.domain"),
        ({"eval": {"domain": "../secret.txt"}}, "eval.domain"),
        ({"eval": {"domain": "data/missing.jsonl"}}, "eval.domain"),
        ({"stages": [{"name": "a", "sources": [{"path": "../*"}]}]}, "stages.0.sources.0.path"),
    ],
    ids=[
        "base",
        "fingerprint",
        "yield",
        "rank",
        "absolute",
        "parent",
        "missing",
        "stage",
    ],
)
def test_what_does_not_go_with_this_server_is_refused(
    folder: Path, fields: dict[str, Any], wrong: str
) -> None:
    assert wrong_fields(folder, recipe(**fields)) == [wrong]


def test_a_link_out_of_the_folder_is_not_followed(folder: Path) -> None:
    os.symlink(folder.parent / "secret.txt", folder / "data" / "b.jsonl")

    assert wrong_fields(folder, recipe()) == ["data.sources.0.path"]


@given(st.text(alphabet="./*a\\[]\0~", max_size=12))
def test_no_pattern_finds_what_lies_outside(tmp_path_factory: pytest.TempPathFactory, pattern: str) -> None:
    root = tmp_path_factory.getbasetemp() / "patterns"
    (root / "job").mkdir(parents=True, exist_ok=True)
    (root / "a").write_text("outside")
    (root / "job" / "a").write_text("inside")

    found = found_files(pattern, root / "job")

    assert set(found) <= {root / "job" / "a"}
    assert not (found and problem_of_pattern(pattern))


def test_bundled_conversations_are_no_file(folder: Path) -> None:
    content = recipe()
    content["data"]["general"] = {"path": "bundled"}

    assert [named.field for named in named_files(parse_recipe(content, "recipe"))] == ["data.sources.0.path"]
    assert wrong_fields(folder, content) == []


def test_a_missing_library_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "find_spec", lambda name: None if name == "trl" else object())
    order = CheckOrder(recipe="", tenant="t", folder=str(folder), base_id="", base_fingerprint="", max_rank=1)

    assert check(order) == LibraryMissing("trl")


def test_the_recipe_of_a_job_is_its_tenants() -> None:
    read, violations = read_job_recipe(yaml.safe_dump(recipe()), "team")

    assert violations == []
    assert read is not None
    assert read.tenant == "team"
