"""D03: role markers of the source are recognised and taken off; rendering is left to the base's chat template."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from loraplex_trainer.data.conversation import Conversation, rows_of
from loraplex_trainer.data.lengths import messages_of
from loraplex_trainer.data.readers.dialogues import dialogue_conversations
from loraplex_trainer.data.roles import role_of, without_marker
from loraplex_trainer.data.row import Role

MARKERS = [
    ("用户", "助手"),
    ("客户", "客服"),
    ("问", "答"),
    ("User", "Assistant"),
    ("Human", "AI"),
    ("Q", "A"),
    ("Question", "Answer"),
    ("USER", "ASSISTANT"),
]


@pytest.mark.parametrize(("asks", "answers"), MARKERS)
@pytest.mark.parametrize("colon", [":", "：", " : "])
def test_d03_markers_of_a_text_become_roles_and_leave_no_trace(
    asks: str, answers: str, colon: str, tiny_base: Path
) -> None:
    text = f"{asks}{colon}Which door?\n{answers}{colon}The green one.\n"

    (conversation,) = dialogue_conversations(text, "faq.txt")
    assert isinstance(conversation, Conversation)
    (row,), _ = rows_of(conversation)

    assert (row.question, row.completion) == ("Which door?", "The green one.")
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    messages = [*messages_of(row, "Be brief."), {"role": "assistant", "content": row.completion}]
    rendered = tokenizer.decode(tokenizer.apply_chat_template(messages, return_dict=False))
    assert f"{asks}{colon}".strip() not in rendered
    assert rendered.count("<|im_start|>user\nWhich door?<|im_end|>") == 1
    assert rendered.count("<|im_start|>assistant\nThe green one.<|im_end|>") == 1


@pytest.mark.parametrize(
    ("text", "role", "left", "count"),
    [
        ("用户：你好", "user", "你好", 1),
        ("User: User: hello", "user", "hello", 2),
        ("**Assistant:** Sure.", "assistant", "Sure.", 1),
        ("【客服】：您好", "assistant", "您好", 1),
        ("Q12: why?", "user", "why?", 1),
        ("Assistant: is a role", "user", "Assistant: is a role", 0),
        ("Answers differ: some are long", "assistant", "Answers differ: some are long", 0),
        ("A:", "assistant", "A:", 0),
        ("问题在于价格", "user", "问题在于价格", 0),
    ],
)
def test_d03_only_the_own_markers_before_a_turn_are_removed(
    text: str, role: Role, left: str, count: int
) -> None:
    assert without_marker(text, role) == (left, count)


def test_d03_names_of_roles_in_data_sets_are_known() -> None:
    assert {
        name: role_of(name) for name in ("human", "GPT", "用户", "助手", "客服", "developer", "tool")
    } == {
        "human": "user",
        "GPT": "assistant",
        "用户": "user",
        "助手": "assistant",
        "客服": "assistant",
        "developer": "system",
        "tool": None,
    }
