"""Personal data is masked in rows, or its rows are dropped. Reports get counts and salted hashes, never a value."""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from loraplex_trainer.data.pii_patterns import personal_data
from loraplex_trainer.data.progress import Progress, silent
from loraplex_trainer.data.row import Row
from loraplex_trainer.data.text import has_cjk, same_length_nfkc

_CHINESE = {
    "mobile": "手机号",
    "id": "身份证号",
    "card": "银行卡号",
    "phone": "电话号码",
    "email": "邮箱",
    "ip": "IP地址",
}
_ENGLISH = {
    "mobile": "PHONE",
    "id": "ID_NUMBER",
    "card": "CARD_NUMBER",
    "phone": "PHONE",
    "email": "EMAIL",
    "ip": "IP_ADDRESS",
}
MASKS = tuple(f"<{word}>" for word in (*_CHINESE.values(), *sorted(set(_ENGLISH.values()))))


@dataclass
class PiiResult:
    """Rows that remain, and what was found."""

    rows: list[Row]
    by_kind: Counter[str] = field(default_factory=Counter)
    by_source: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    values: Counter[str] = field(default_factory=Counter)  # salted hash → how often
    touched: int = 0
    dropped: list[tuple[str, str]] = field(default_factory=list)  # (origin, reason)


def clean_rows(
    rows: Sequence[Row], action: Literal["mask", "drop", "off"], progress: Progress = silent
) -> PiiResult:
    """Mask or drop. The salt is drawn anew and thrown away: equal hashes tell of equal values within this result,
    and nobody can try out all phone numbers later."""
    result = PiiResult([])
    if action == "off":
        result.rows.extend(rows)
        return result
    masker = _Masker(result, secrets.token_bytes(16))
    for number, row in enumerate(rows):
        if number % 1000 == 0:
            progress("looking for personal data", number, len(rows))
        masked = masker.row(row)
        if masked is row:
            result.rows.append(row)
            continue
        result.touched += 1
        if action == "drop":
            result.dropped.append((row.origin, "personal data"))
        elif masked.evidence is not None and masked.completion not in masked.evidence:
            result.dropped.append((row.origin, "personal data across the edge of an answer"))
        else:
            result.rows.append(masked)
    progress("looking for personal data", len(rows), len(rows))
    return result


def mask_text(text: str) -> str:
    """The text with a mask in place of everything personal."""
    return _masked(text, None, "", b"")


class _Masker:
    """Masks rows and counts."""

    def __init__(self, result: PiiResult, salt: bytes) -> None:
        self._result = result
        self._salt = salt

    def row(self, row: Row) -> Row:
        """The row itself where nothing is personal."""
        prompt = tuple({**message, "content": self._text(message["content"], row)} for message in row.prompt)
        completion = self._text(row.completion, row)
        # The evidence holds the answer, and the grader what is expected of it: counted once.
        evidence = mask_text(row.evidence) if row.evidence is not None else None
        grader = _masked_values(row.grader) if row.grader is not None else None
        if prompt == row.prompt and completion == row.completion and grader == row.grader:
            return row if evidence == row.evidence else replace(row, evidence=evidence)
        return replace(row, prompt=prompt, completion=completion, evidence=evidence, grader=grader)  # type: ignore[arg-type]

    def _text(self, text: str, row: Row) -> str:
        return _masked(text, self._result, row.source, self._salt)


def _masked(text: str, counted: PiiResult | None, source: str, salt: bytes) -> str:
    if not any(c.isdigit() for c in text) and "@" not in text and "\uff20" not in text:
        return text
    found = personal_data(text)
    if not found:
        return text
    words = _CHINESE if has_cjk(text) else _ENGLISH
    parts, position = [], 0
    for item in found:
        parts += [text[position : item.start], f"<{words[item.kind]}>"]
        position = item.end
        if counted is not None:
            value = "".join(
                c for c in same_length_nfkc(text[item.start : item.end]).casefold() if c.isalnum()
            )
            counted.by_kind[item.kind] += 1
            counted.by_source[source][item.kind] += 1
            counted.values[hashlib.sha256(salt + value.encode()).hexdigest()[:12]] += 1
    return "".join([*parts, text[position:]])


def _masked_values(grader: dict[str, Any]) -> dict[str, Any]:
    return {
        key: mask_text(value)
        if isinstance(value, str)
        else [mask_text(str(v)) for v in value]
        if isinstance(value, list)
        else value
        for key, value in grader.items()
    }
