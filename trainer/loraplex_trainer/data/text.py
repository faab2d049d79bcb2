"""Text as it is trained on, and the keys under which two texts count as the same."""

from __future__ import annotations

import re
import unicodedata

_CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_CONTROL = re.compile(
    "[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f\u200b-\u200f\u202a-\u202e\u2060\ufeff\ufffe]"
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_INNER_POINT = re.compile(r"(?<=\d)[.,](?=\d)")
_WIDE = {
    code: chr(code - 0xFEE0)
    for first, last in ((0xFF10, 0xFF19), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A))
    for code in range(first, last + 1)
} | {0x3000: " "}


def normalized(text: str) -> str:
    """Text for training: mojibake repaired, NFC, digits and letters half-width, no control characters, trimmed.

    Not NFKC: that would make `，` of Chinese text a `,`, and no Chinese text is written so.
    """
    import ftfy

    config = ftfy.TextFixerConfig(
        unescape_html=False,
        fix_character_width=False,
        uncurl_quotes=False,
        explain=False,
        normalization="NFC",
    )
    repaired = ftfy.fix_text(text, config).translate(_WIDE)
    lines = _CONTROL.sub("", repaired).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in lines)).strip()


def same_length_nfkc(text: str) -> str:
    """NFKC character by character, where it gives one character: spans found in it are spans of `text`."""
    folded = (unicodedata.normalize("NFKC", c) for c in text)
    return "".join(new if len(new) == 1 else old for old, new in zip(text, folded, strict=True))


def match_key(text: str) -> str:
    """NFKC, case folded, without spaces and punctuation: equal for texts that say the same in the same words.

    A point between digits stays, since 2.40 is not 240; so does a sign before a digit.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    folded = _INNER_POINT.sub("\x00", folded)
    folded = re.sub(r"(?<![\w\x00])[-−](?=\d)", "\x01", folded)
    return "".join(c for c in folded if c.isalnum() or c in "\x00\x01" or unicodedata.category(c)[0] in "MS")


def has_cjk(text: str) -> bool:
    """Whether Chinese or Japanese characters stand in it."""
    return _CJK.search(text) is not None


def is_mostly_cjk(text: str) -> bool:
    """Whether at least a third of its letters are Chinese or Japanese."""
    letters = sum(c.isalpha() for c in text)
    return letters > 0 and len(_CJK.findall(text)) * 3 >= letters


def grams(text: str) -> frozenset[str]:
    """Character n-grams of the match key: 3 characters where it is mostly Chinese, else 5; short text is one gram."""
    key = match_key(text)
    size = 3 if is_mostly_cjk(key) else 5
    return frozenset(key[i : i + size] for i in range(max(1, len(key) - size + 1)))


def numbers(text: str) -> tuple[str, ...]:
    """All numbers of a text, sorted. Texts that differ in them say different things, however alike they look."""
    return tuple(sorted(_NUMBER.findall(unicodedata.normalize("NFKC", text))))
