from __future__ import annotations

import json
from pathlib import Path

import pytest

from loraplex_server.tokenizer import BaseTokenizer, ChatMessage
from loraplex_trainer.base_model import load_tokenizer
from loraplex_trainer.train.tokens import (
    IGNORED,
    prompt_token_ids,
    read_eval_rows,
    read_training_rows,
    tokenize,
)
from loraplex_trainer.errors import TrainingDataError

from .conftest import SYSTEM

PROMPT = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Hm?"}]
COMPLETION = {"role": "assistant", "content": "Aha."}


def test_every_row_is_trained_on_its_completion_and_eos_and_nothing_else(
    tiny_base: Path, recipe_path: Path
) -> None:
    tokenizer = load_tokenizer(tiny_base)
    rows = read_training_rows(recipe_path.parent / "train.jsonl", tokenizer, SYSTEM, max_length=160)

    assert len(rows) == 4
    for row in rows:
        trained = [label for label in row.labels if label != IGNORED]
        assert row.labels[-1] == row.input_ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(trained) in {f"{c}.<|im_end|>" for c in ("Red", "Green", "Blue", "Grey")}


def test_the_prompt_of_a_row_is_what_the_server_feeds(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    row = tokenize(tokenizer, PROMPT, COMPLETION)
    prompt = prompt_token_ids(tokenizer, PROMPT)

    assert row.input_ids[: len(prompt)] == prompt
    assert row.labels[: len(prompt)] == [IGNORED] * len(prompt)
    assert "Persona" not in tokenizer.decode(prompt)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON"),
        ("[]", "line 1: not an object"),
        (json.dumps({"prompt": PROMPT}), "completion"),
        (json.dumps({"prompt": "Hm?", "completion": [COMPLETION]}), "prompt"),
        (json.dumps({"prompt": PROMPT[1:], "completion": [COMPLETION]}), "system message"),
        (json.dumps({"prompt": PROMPT, "completion": [{**COMPLETION, "content": "a" * 500}]}), "more than"),
        (json.dumps({"prompt": PROMPT, "completion": [{**COMPLETION, "content": ""}]}), "empty"),
        ("", "has no rows"),
    ],
)
def test_a_bad_training_file_is_refused_with_its_line(
    tiny_base: Path, tmp_path: Path, line: str, message: str
) -> None:
    (tmp_path / "train.jsonl").write_text(line + "\n" if line else "")
    with pytest.raises(TrainingDataError, match=message):
        read_training_rows(tmp_path / "train.jsonl", load_tokenizer(tiny_base), SYSTEM, max_length=160)


def test_a_held_out_question_without_its_grader_is_refused(tmp_path: Path) -> None:
    (tmp_path / "eval.jsonl").write_text('{"id": "1", "question": "?"}\n')
    with pytest.raises(TrainingDataError, match="line 1: lacks answer, expected, grader, system"):
        read_eval_rows(tmp_path / "eval.jsonl")


def test_the_server_renders_a_prompt_to_the_same_tokens(tiny_base: Path) -> None:
    messages = tuple(ChatMessage(m["role"], m["content"]) for m in PROMPT)

    assert BaseTokenizer(tiny_base).encode(messages) == prompt_token_ids(load_tokenizer(tiny_base), PROMPT)
