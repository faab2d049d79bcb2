"""The chat template of a base folder."""

from __future__ import annotations

import json
from pathlib import Path


def read_chat_template(folder: Path) -> str | None:
    """Jinja source from `chat_template.jinja`, else from `tokenizer_config.json`; None when the base has none."""
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        return own_file.read_text(encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    if not settings.is_file():
        return None
    template: str | list[dict[str, str]] | None
    template = json.loads(settings.read_text(encoding="utf-8")).get("chat_template")
    if isinstance(template, list):  # several by name
        return next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template
