"""Personal data in text: where it stands, and of which kind. Nothing here keeps or prints a value."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date

from loraplex_trainer.data.text import same_length_nfkc

_SEP = r"[ \-\u2010\u2011–.·]?"
_MOBILE = re.compile(
    r"(?<![\dA-Za-z])(?:(?:\+|00)?86[ \-]?)?(1[ ]?[3-9](?:[ \-\u2010\u2011–.·]?\d){9})(?![\dA-Za-z])"
)
_LONG = re.compile(rf"(?<![\dA-Za-z])\d(?:{_SEP}\d){{12,18}}(?![\dA-Za-z])")
_ID18 = re.compile(rf"(?<![\dA-Za-z])[1-9](?:{_SEP}\d){{16}}{_SEP}[\dXx](?![\dA-Za-z])")
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+\-])[A-Za-z0-9][A-Za-z0-9._%+\-]{0,63}[ ]?@[ ]?"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![A-Za-z0-9])"
)
_IPV4 = re.compile(r"(?<![\d.A-Za-z])\d{1,3}(?:\.\d{1,3}){3}(?![\dA-Za-z]|\.\d)")
_PROVINCES = frozenset(
    "11 12 13 14 15 21 22 23 31 32 33 34 35 36 37 41 42 43 44 45 46 50 51 52 53 54 61 62 63 64 65 71 81 82 83".split()
)
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
# Groups in which people write a mobile number; other groupings are lists of numbers.
_MOBILE_GROUPS = frozenset({(11,), (3, 4, 4), (4, 4, 3), (3, 8), (7, 4), (3, 3, 5), (1,) * 11})
# First digits and lengths of payment cards: UnionPay, Visa, Mastercard, American Express, Discover, JCB, Diners.
_CARDS = (
    (re.compile(r"62\d{14,17}"), "UnionPay"),
    (re.compile(r"4\d{15}|4\d{12}"), "Visa"),
    (re.compile(r"5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"), "Mastercard"),
    (re.compile(r"3[47]\d{13}"), "American Express"),
    (re.compile(r"6(?:011|5\d\d)\d{12}"), "Discover"),
    (re.compile(r"35(?:2[89]|[3-8]\d)\d{12}"), "JCB"),
    (re.compile(r"3(?:0[0-5]|[68]\d)\d{11}"), "Diners"),
)


@dataclass(frozen=True, slots=True)
class Found:
    """Personal data from `start` to `end`."""

    start: int
    end: int
    kind: str  # "mobile", "id", "card", "phone", "email", "ip"


def personal_data(text: str) -> list[Found]:
    """All of it, in order, without overlaps; where two kinds overlap, the one that is checked harder."""
    folded = same_length_nfkc(text)
    taken: list[Found] = []
    for find in _FINDERS:
        for found in find(folded):
            if all(found.end <= other.start or found.start >= other.end for other in taken):
                taken.append(found)
    return sorted(taken, key=lambda found: found.start)


def _emails(text: str) -> Iterator[Found]:
    if "@" in text:
        yield from (Found(m.start(), m.end(), "email") for m in _EMAIL.finditer(text))


def _ids(text: str) -> Iterator[Found]:
    for match in _overlapping(_ID18, text):
        if is_id18(_compact(match.group())):
            yield Found(match.start(), match.end(), "id")
    for match in _overlapping(_LONG, text):
        if is_id15(_compact(match.group())):
            yield Found(match.start(), match.end(), "id")


def _cards(text: str) -> Iterator[Found]:
    for match in _LONG.finditer(text):
        digits = _compact(match.group())
        if is_card(digits) and _are_groups(match.group()):
            yield Found(match.start(), match.end(), "card")


def _mobiles(text: str) -> Iterator[Found]:
    for match in _MOBILE.finditer(text):
        if _group_lengths(match.group(1)) in _MOBILE_GROUPS:
            yield Found(match.start(), match.end(), "mobile")


def _phones(text: str) -> Iterator[Found]:
    if "+" not in text:
        return
    from phonenumbers import Leniency, PhoneNumberMatcher

    for match in PhoneNumberMatcher(text, None, leniency=Leniency.VALID):
        yield Found(match.start, match.end, "phone")


def _ips(text: str) -> Iterator[Found]:
    for match in _IPV4.finditer(text):
        try:
            address = ipaddress.IPv4Address(match.group())
        except ValueError:
            continue
        if not (
            address.is_loopback
            or address.is_unspecified
            or address.is_multicast
            or match.group().startswith("255.")
        ):
            yield Found(match.start(), match.end(), "ip")


_FINDERS: tuple[Callable[[str], Iterator[Found]], ...] = (_emails, _ids, _cards, _phones, _mobiles, _ips)


def is_id18(digits: str) -> bool:
    """A resident identity number: province, birth date, and check character after ISO 7064 MOD 11-2."""
    if len(digits) != 18 or digits[:2] not in _PROVINCES or not _is_date(digits[6:14]):
        return False
    total = sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, digits, strict=False))
    return "10X98765432"[total % 11] == digits[17].upper()


def is_id15(digits: str) -> bool:
    """The form of before 1999: province, birth date with a year of two digits, no check character."""
    return (
        len(digits) == 15 and digits.isdigit() and digits[:2] in _PROVINCES and _is_date("19" + digits[6:12])
    )


def is_card(digits: str) -> bool:
    """A payment card: the first digits and the length of an issuer, and a check digit after Luhn."""
    return any(pattern.fullmatch(digits) for pattern, _ in _CARDS) and luhn(digits)


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit."""
    doubled = [int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits))]
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def _overlapping(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """Matches that may begin within one another: "99 110105…" begins with a number that is none."""
    position = 0
    while match := pattern.search(text, position):
        yield match
        position = match.start() + 1


def _compact(text: str) -> str:
    return re.sub(r"[^\dXx]", "", text)


def _group_lengths(text: str) -> tuple[int, ...]:
    return tuple(len(group) for group in re.split(r"[^\d]+", text) if group)


def _are_groups(text: str) -> bool:
    lengths = _group_lengths(text)
    return set(lengths) == {1} or min(lengths[:-1], default=13) >= 4


def _is_date(digits: str) -> bool:
    try:
        born = date(int(digits[:4]), int(digits[4:6]), int(digits[6:8]))
    except ValueError:
        return False
    return born.year >= 1900 and born <= date.today()
