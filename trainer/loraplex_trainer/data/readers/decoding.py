"""Bytes to text, whatever encoding a team's files are in."""

from __future__ import annotations

import re
from pathlib import Path

from loraplex_trainer.data.conversation import BadRecordError

MAX_FILE_BYTES = 2 * 2**30


def file_bytes(path: Path) -> bytes:
    """All of a file. Raises BadRecordError where it cannot be read."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BadRecordError("the file is larger than 2 GiB; split it")
        return path.read_bytes()
    except OSError as error:
        raise BadRecordError(f"the file cannot be read: {error.strerror}") from error


def file_text(path: Path) -> str:
    """A text file: UTF-8 or UTF-16 by its mark, else UTF-8, else the likeliest encoding (GB18030, Windows-1252, …)."""
    return decoded(file_bytes(path))


def decoded(content: bytes) -> str:
    """As `file_text`, of bytes. Raises BadRecordError for what is no text."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    if b"\x00" in content[:4096]:
        raise BadRecordError("the file is not text")
    runs = re.findall(rb"[\x80-\xff]+", content)
    if sum(map(len, runs)) < 1.5 * len(runs):
        return content.decode("cp1252", errors="replace")  # letters with accents among plain ones: Western
    try:
        # Old Chinese files are GBK. Decoding to Chinese decides: statistics of a short file may say Korean.
        chinese = content.decode("gb18030")
        if _is_chinese(chinese):
            return chinese
    except UnicodeDecodeError:
        pass
    from charset_normalizer import from_bytes

    best = from_bytes(content).best()
    if best is None:
        raise BadRecordError("the encoding of the file is not known; save it as UTF-8")
    return str(best)


def _is_chinese(text: str) -> bool:
    """Whether most of its characters beyond ASCII are those that Chinese text is made of."""
    beyond = [c for c in text if ord(c) > 127]
    return sum(map(_is_common_chinese, beyond)) > len(beyond) / 2


def _is_common_chinese(character: str) -> bool:
    try:
        encoded = character.encode("gb2312")
    except UnicodeEncodeError:
        return False
    return len(encoded) == 2 and (0xB0 <= encoded[0] <= 0xD7 or encoded[0] == 0xA1 or encoded[0] == 0xA3)
