"""What several adapter commands take, and how it is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import typer

from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.failures import CommandError
from loraplex_cli.options import MAX_COUNT

NameArgument = Annotated[str, typer.Argument(help="Name of the adapter, e.g. finance/faq.")]
VersionArgument = Annotated[str, typer.Argument(help="Digest, of which 12 digits are enough, or an alias.")]
DigestArgument = Annotated[str, typer.Argument(help="Digest, of which 12 digits are enough.")]
AliasOption = Annotated[str, typer.Option("--alias", help="The alias.")]
EndOption = Annotated[bool, typer.Option("--end", help="End it.")]
ExpectDigestOption = Annotated[
    str | None, typer.Option(help="SHA-256 that the package must have, 64 hexadecimal digits.")
]


def bad_usage(message: str) -> CommandError:
    return CommandError(message, ExitCode.BAD_INPUT, "BAD_USAGE")


def read_pairs(words: Sequence[str], form: str = "KEY=VALUE") -> dict[str, str]:
    """KEY=VALUE words; `form` is what the user knows them as. Raises CommandError."""
    pairs: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise bad_usage(f"'{word}' must be {form}")
        if key in pairs:
            raise bad_usage(f"'{key}' is given twice")
        pairs[key] = value
    return pairs


def read_traffic(words: Sequence[str]) -> dict[str, int]:
    """TARGET=WEIGHT words. Raises CommandError."""
    pairs = read_pairs(words, "TARGET=WEIGHT")
    return {target: read_count(weight, f"weight of '{target}'") for target, weight in pairs.items()}


def read_count(text: str, what: str) -> int:
    """A whole number, at least 1 and no larger than the wire carries. Raises CommandError."""
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise bad_usage(f"{what} must be a whole number of at least 1, not '{text}'")
    if int(text) > MAX_COUNT:
        raise bad_usage(f"{what} must be at most {MAX_COUNT}, not {text}")
    return int(text)


def read_digest(text: str | None) -> str:
    """A whole digest; "" where none is given. Raises CommandError.

    One given empty is refused: a script whose variable is not set must not pass unchecked.
    """
    if text is None:
        return ""
    if not re.fullmatch("(sha256:)?[0-9a-fA-F]{64}", text):
        raise bad_usage(f"--expect-digest must be 64 hexadecimal digits, not '{text}'")
    return text.removeprefix("sha256:").lower()
