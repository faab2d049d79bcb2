"""Text and conversations -> token ids, with the base's own tokenizer and chat template.

Reads the tokenizer's files directly: transformers would bring torch, seconds of start-up and hundreds of megabytes
into the front end. Equality with transformers is a test.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from loraplex_adapters.errors import invalid
from loraplex_server.base.chat_template import read_chat_template
from loraplex_server.errors import BaseModelInvalidError

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn."""

    role: str
    content: str


Prompt = str | tuple[ChatMessage, ...] | tuple[int, ...]
"""Raw text, a conversation, or token ids."""


class BaseTokenizer:
    """The tokenizer of one base folder. Thread-safe: nothing changes after construction."""

    def __init__(self, folder: Path) -> None:
        """Raises BaseModelInvalidError when the folder has no tokenizer.json."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise BaseModelInvalidError(
                "the base's folder has no tokenizer.json; save its fast tokenizer there"
            )
        self.backend: Tokenizer = Tokenizer.from_file(str(path))
        # The file may hold what its trainer cut and filled up rows to.
        self.backend.no_truncation()
        self.backend.no_padding()
        size: int = self.backend.get_vocab_size(with_added_tokens=True)
        # A tokenizer may have more tokens than its model has embeddings, and the other way round.
        self.vocab_size: int = min(size, _read_json(folder / "config.json").get("vocab_size", size))
        """Ids are below this."""
        settings = _read_json(folder / "tokenizer_config.json")
        self._special_tokens = {name: _token_text(settings.get(name)) for name in _SPECIAL_TOKENS}
        source = read_chat_template(folder)
        self._template = _environment().from_string(source) if source is not None else None

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt. Raises InvalidRequestError for what the template refuses."""
        if isinstance(prompt, str):
            return self._ids(prompt, add_special_tokens=True)
        if prompt and isinstance(prompt[0], ChatMessage):
            # The template writes its special tokens itself.
            rendered = self.render([message for message in prompt if isinstance(message, ChatMessage)])
            return self._ids(rendered, add_special_tokens=False)
        return [token_id for token_id in prompt if isinstance(token_id, int)]

    def _ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        # Unlike `encode`, the batch call releases the interpreter's lock: a long prompt stops nobody else.
        (encoding,) = self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def render(self, messages: list[ChatMessage]) -> str:
        """The conversation as the model was trained to see it, ready for the assistant's turn."""
        if self._template is None:
            raise invalid("chat", "the base model has no chat template; send `prompt` instead")
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(messages=turns, add_generation_prompt=True, **self._special_tokens)
        except TemplateError as error:
            raise invalid("chat", f"the model's chat template refuses this conversation: {error}") from None

    def token_text(self, token_id: int) -> str:
        """A token by itself; a partial UTF-8 sequence shows as the replacement character."""
        text: str = self.backend.decode([token_id], skip_special_tokens=False)
        return text


def _environment() -> ImmutableSandboxedEnvironment:
    """As chat templates expect it: the same options and helpers that transformers gives them."""

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _token_text(token: Any) -> str | None:
    """A special token is a string or an object that holds one."""
    return token.get("content") if isinstance(token, dict) else token
