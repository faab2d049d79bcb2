from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loraplex_server.tokenizer import BaseTokenizer, ChatMessage
from loraplex_trainer.base_model import load_tokenizer
from loraplex_trainer.errors import TrainingDataError
from loraplex_trainer.train.tokens import (
    IGNORED,
    prompt_messages,
    prompt_token_ids,
    read_eval_rows,
    render,
    tokenize,
)

from ..conftest import SYSTEM
from .conftest import colour_rows, row

LLAMA_STYLE = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m.role + ']' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


@pytest.mark.parametrize("template", [None, LLAMA_STYLE], ids=["chatml", "llama-style"])
def test_every_row_is_trained_on_its_completion_and_eos_and_nothing_else(
    tiny_base: Path, template: str | None
) -> None:
    tokenizer = load_tokenizer(tiny_base)
    tokenizer.chat_template = template or tokenizer.chat_template

    for rendered, source in zip(render(colour_rows(), tokenizer, SYSTEM), colour_rows(), strict=True):
        trained = [label for label in rendered.labels if label != IGNORED]
        assert rendered.labels[-1] == rendered.input_ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(trained) == f"{source.completion}<|im_end|>"
        assert rendered.num_supervised == len(trained)


def test_the_prompt_of_a_row_is_what_the_server_feeds(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    messages = prompt_messages(row("Hm?", "Aha."), SYSTEM)
    rendered = tokenize(tokenizer, messages, {"role": "assistant", "content": "Aha."})
    prompt = prompt_token_ids(tokenizer, messages)

    assert rendered.input_ids[: len(prompt)] == prompt
    assert rendered.labels[: len(prompt)] == [IGNORED] * len(prompt)
    assert "Persona" not in tokenizer.decode(prompt)


def test_the_recipes_system_turn_stands_first_and_null_means_none() -> None:
    source = row("Hm?", "Aha.")

    assert prompt_messages(source, SYSTEM)[0] == {"role": "system", "content": SYSTEM}
    assert [m["role"] for m in prompt_messages(source, None)] == ["user"]


def test_a_template_with_two_bos_is_refused_with_the_rows_id(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    tokenizer.chat_template = "{{ bos_token }}" + LLAMA_STYLE
    source = colour_rows(1)[0]

    with pytest.raises(TrainingDataError, match=f"{source.id}.*two BOS"):
        render([source], tokenizer, SYSTEM)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "does not end a completion with EOS"),
        (
            "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}",
            "differently",
        ),
    ],
    ids=["no-eos", "prompt-changes"],
)
def test_a_template_that_cannot_be_trained_with_is_refused(
    tiny_base: Path, template: str, message: str
) -> None:
    tokenizer = load_tokenizer(tiny_base)
    tokenizer.chat_template = template

    with pytest.raises(TrainingDataError, match=message):
        render(colour_rows(1), tokenizer, SYSTEM)


def test_an_empty_completion_is_refused(tiny_base: Path) -> None:
    with pytest.raises(TrainingDataError, match="empty"):
        render([row("Hm?", "")], load_tokenizer(tiny_base), SYSTEM)


def test_a_held_out_question_without_its_grader_is_refused(tmp_path: Path) -> None:
    (tmp_path / "eval.jsonl").write_text('{"id": "1", "question": "?"}\n')
    with pytest.raises(TrainingDataError, match="record 1: lacks answer, expected, grader, system"):
        read_eval_rows(tmp_path / "eval.jsonl")


@pytest.mark.parametrize(("line", "message"), [("{", "not JSON"), ("1", "not an object")])
def test_a_file_of_questions_that_is_none_is_refused_with_its_line(
    tmp_path: Path, line: str, message: str
) -> None:
    (tmp_path / "eval.jsonl").write_text(line + "\n")
    with pytest.raises(TrainingDataError, match=f"line 1: {message}"):
        read_eval_rows(tmp_path / "eval.jsonl")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grader": "vibes"}, "'vibes' is none of number"),
        ({"expected": 11}, "expected is not a text"),
        ({"expected": "11 dollars"}, "not one plain number"),
        ({"grader": "choice", "choices": ["red", "blue"]}, "'11' is none of the choices"),
        ({"grader": "rouge_l", "pass_at": 60}, "pass_at"),
        ({"question": None}, "question is not a text"),
    ],
)
def test_a_question_that_nobody_could_judge_is_refused_with_its_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    asked = {
        "id": "1",
        "system": None,
        "question": "?",
        "answer": "11.",
        "grader": "number",
        "expected": "11",
    }
    lines = [json.dumps(asked), "", json.dumps({**asked, **changes})]  # an empty line is no question
    (tmp_path / "eval.jsonl").write_text("\n".join(lines))

    with pytest.raises(TrainingDataError, match=f"line 3: .*{message}"):
        read_eval_rows(tmp_path / "eval.jsonl")


def test_the_server_renders_a_prompt_to_the_same_tokens(tiny_base: Path) -> None:
    prompt = prompt_messages(row("Hm?", "Aha."), SYSTEM)
    messages = tuple(ChatMessage(m["role"], m["content"]) for m in prompt)

    assert BaseTokenizer(tiny_base).encode(messages) == prompt_token_ids(load_tokenizer(tiny_base), prompt)
