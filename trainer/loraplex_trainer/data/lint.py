"""Template lint: control tokens and role markers that belong to a chat template, found inside rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from loraplex_trainer.data.roles import LINE_MARKER, marker_role
from loraplex_trainer.data.row import Message, Row
from loraplex_trainer.errors import TrainingDataError

Mode = Literal["fix", "drop", "strict", "off"]

# Name of what was found → pattern. A wrapper of a role (`<|im_start|>user\n`) goes as one.
PATTERNS = {
    "ChatML": r"<\|im_(?:start|end)\|>(?:[ \t]*(?:system|user|assistant)\b[ \t]*\n?)?",
    "Llama 2": r"\[/?INST\]|<</?SYS>>",
    "Llama 3": r"<\|(?:begin_of_text|end_of_text|eot_id|eom_id)\|>"
    r"|<\|start_header_id\|>(?:.{0,20}?)<\|end_header_id\|>\n*",
    "Gemma": r"<(?:start|end)_of_turn>(?:[ \t]*(?:user|model)\b[ \t]*\n?)?",
    "Alpaca": r"(?m)^###?[ \t]*(?:Instruction|Response|Input|Human|Assistant|User|System|问题|回答)"
    r"[ \t]*[:：]?[ \t]*$\n?"
    r"|###[ \t]*(?:Instruction|Response|Human|Assistant)[ \t]*:[ \t]*",
    "Zephyr": r"<\|(?:user|assistant|system)\|>\n?",
    "Mistral": r"\[/?(?:AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT)\]",
    "DeepSeek": r"<[|｜](?:begin▁of▁sentence|end▁of▁sentence|User|Assistant)[|｜]>",
    "BOS or EOS": r"</?s>|<\|endoftext\|>|\[(?:BOS|EOS)\]|<bos>|<eos>|<pad>|\[PAD\]",
}
_COMPILED = {name: re.compile(pattern) for name, pattern in PATTERNS.items()}
_QUICK = re.compile(r"<[|｜/\w]|\[/?[A-Z]|##")  # every pattern needs one of these
_DOUBLED = "doubled role marker"


@dataclass
class LintResult:
    """Rows that remain, and what was found. Counts are of rows."""

    rows: list[Row]
    found: Counter[str]
    fixed: int
    dropped: list[tuple[str, str]]  # (origin, reason)


def lint_rows(rows: Sequence[Row], mode: Mode) -> LintResult:
    """Fix: take the tokens out, or drop the row where that leaves nothing or two turns in one. Strict: raise.

    Raises TrainingDataError with the first places in strict mode.
    """
    result = LintResult([], Counter(), 0, [])
    for row in rows:
        kinds = () if mode == "off" else findings(row)
        result.found.update(kinds)
        if not kinds:
            result.rows.append(row)
        elif mode == "fix" and (fixed := _fixed(row)) is not None:
            result.rows.append(fixed)
            result.fixed += 1
        else:
            result.dropped.append((row.origin, f"foreign template: {', '.join(kinds)}"))
    if mode == "strict" and result.dropped:
        places = "; ".join(f"{origin} ({reason})" for origin, reason in result.dropped[:5])
        raise TrainingDataError(
            f"data.clean.lint is strict, and {len(result.dropped)} rows hold parts of a chat template: {places}"
        )
    return result


def findings(row: Row) -> tuple[str, ...]:
    """What of templates stands in a row, by name."""
    texts = [message["content"] for message in row.prompt] + [row.completion]
    kinds = [
        name
        for name, pattern in _COMPILED.items()
        if any(_QUICK.search(text) and pattern.search(text) for text in texts)
    ]
    if any(_inner_turns(text) for text in texts):
        kinds.append(_DOUBLED)
    return tuple(kinds)


def _fixed(row: Row) -> Row | None:
    """The row without what the lint found; None where that cannot be."""
    turns: list[Message] = []
    for message in row.prompt:
        content = _without_tokens(message["content"])
        if content is None:
            return None
        turns.append({"role": message["role"], "content": content})
    answer = _without_tokens(row.completion)
    if answer is None:
        return None
    fixed = replace(row, prompt=tuple(turns), completion=answer)
    if row.evidence is not None:
        evidence = _without_tokens(row.evidence)
        if evidence is None or answer not in evidence:
            return None
        fixed = replace(fixed, evidence=evidence)
    return None if findings(fixed) else fixed


def _without_tokens(text: str) -> str | None:
    """None where nothing remains, or where a token stands in the middle: it parts turns, and no part is the whole."""
    for pattern in _COMPILED.values():
        text = pattern.sub("\x00", text)
    text = text.strip("\x00 \n\t")
    return None if "\x00" in text else _without_end_marker(text).strip() or None


def _without_end_marker(text: str) -> str:
    """A dangling `Assistant:` at the end of a question, or a marker of the own role before it."""
    return re.sub(r"\n\s*(?:Assistant|AI|Answer|A|助手|答|回答)\s*[:：]\s*\Z", "", text)


def _inner_turns(text: str) -> bool:
    """Markers at the begin of two or more lines that change the speaker, or one that hangs at the end."""
    if ":" not in text and "：" not in text:
        return False
    found = list(LINE_MARKER.finditer(text))
    if not found:
        return False
    if not text[found[-1].end() :].strip() and found[-1].start() > 0:
        return True
    roles = [marker_role(marker.group(1)) for marker in found]
    return len(set(roles)) > 1 or len(found) > 2 or (found[0].start() == 0 and len(found) > 1)
