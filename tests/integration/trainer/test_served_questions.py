"""D02, D10: questions and paraphrases by the base of a running server."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraplex_client.errors import LoraplexApiError
from loraplex_trainer.data.build import build_data
from loraplex_trainer.data.served_base import served_base
from loraplex_trainer.recipe.document import Recipe, parse_recipe
from tests.integration.live_server import LiveServer

SENTENCES = [f"The lamp number {i} is kept in hall {i * 3} by the northern door." for i in range(1, 9)]


def _recipe(**data: object) -> Recipe:
    content = {"sources": [{"path": "halls.txt"}], "size": {"error_below": 2}, "val": {"share": 0}, **data}
    return parse_recipe({"name": "test", "system": None, "data": content}, "recipe.yaml")


@pytest.mark.slow
def test_the_served_base_is_asked_for_every_sentence_and_its_words_never_become_answers(
    server: LiveServer, tmp_path: Path
) -> None:
    text = (
        "Halls of the warehouse\n\n" + "\n\n".join(SENTENCES) + "\n\nWardens must lock every door at night."
    )
    (tmp_path / "halls.txt").write_text(text)
    questions = {"written_by": "model", "server": server.target}

    one = build_data(_recipe(questions=questions), tmp_path, tmp_path / "one")
    two = build_data(_recipe(questions=questions), tmp_path, tmp_path / "two")

    by_model = one.report.documents.by_rule.get("model", 0)
    unusable = one.report.rejected_by_reason.get("the model wrote no usable question", 0)
    assert by_model + unusable >= len(SENTENCES)
    assert all(row.completion in text for row in one.train)
    assert one.sha256 == two.sha256


@pytest.mark.slow
def test_paraphrases_of_the_served_base_are_checked(server: LiveServer, tmp_path: Path) -> None:
    lines = [f"Q: Where is lamp {i}?\nA: {sentence}" for i, sentence in enumerate(SENTENCES)]
    (tmp_path / "halls.txt").write_text("\n".join(lines))
    augment = {"method": "paraphrase", "factor": 1, "server": server.target}

    built = build_data(_recipe(augment=augment), tmp_path, tmp_path / "out")

    assert built.report.augment.rows + built.report.augment.refused == len(SENTENCES)
    with served_base(server.target) as ask:
        assert ask("Say something.") == ask("Say something.") != ""


def test_a_server_that_does_not_answer_ends_the_build_without_a_folder(tmp_path: Path) -> None:
    (tmp_path / "halls.txt").write_text("\n".join(SENTENCES))
    recipe = _recipe(questions={"written_by": "model", "server": "127.0.0.1:1"})

    with pytest.raises(LoraplexApiError):
        build_data(recipe, tmp_path, tmp_path / "out")

    assert not (tmp_path / "out").exists()
