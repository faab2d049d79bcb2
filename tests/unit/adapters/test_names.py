from __future__ import annotations

import pytest

from loraplex_adapters.errors import InvalidRequestError
from loraplex_adapters.names import (
    AdapterName,
    AdapterReference,
    parse_alias,
    parse_digest,
    parse_target,
    parse_tenant,
    parse_whole_digest,
)


@pytest.mark.parametrize(
    ("text", "name", "short"),
    [
        ("shop", AdapterName("default", "shop"), "shop"),
        ("shop-1/faq_v1.2", AdapterName("shop-1", "faq_v1.2"), "shop-1/faq_v1.2"),
        ("tenants/finance/adapters/faq", AdapterName("finance", "faq"), "finance/faq"),
        ("tenants/default/adapters/...", AdapterName("default", "..."), "..."),
        ("t/base", AdapterName("t", "base"), "t/base"),
        ("x" * 63, AdapterName("default", "x" * 63), "x" * 63),
    ],
)
def test_a_good_name_is_read_in_all_its_forms(text: str, name: AdapterName, short: str) -> None:
    assert AdapterName.parse(text) == name
    assert str(name) == short
    assert AdapterName.parse(short) == AdapterName.parse(name.resource) == name


BAD_CHARACTERS = [
    "A",
    "ä",
    "\u0430",  # the last is Cyrillic and looks like an a
    "a b",
    "a,b",
    "a\n",
    "a\\b",
    "a\0",
    "٣",
    "a@b",
]
BAD_PARTS = [
    "",
    "x" * 64,
    "/a",
    "a/",
    "a//b",
    "..",
    ".",
    "a/..",
    "./a",
    "a/b/c",
    "tenants/a/adapters/",
    "tenants/a/b/c",
]
RESERVED = ["base", "other", "default/base"]


@pytest.mark.parametrize("text", [*BAD_CHARACTERS, *BAD_PARTS, *RESERVED])
def test_a_bad_name_is_a_violation_of_its_field(text: str) -> None:
    """vLLM #46287: a name taken from a request left the resolver's folder by '..' or an absolute path."""
    with pytest.raises(InvalidRequestError) as caught:
        AdapterName.parse(text, field="adapter.name")

    assert [violation.field for violation in caught.value.violations] == ["adapter.name"]


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("t/shop", ""),
        ("t/shop@canary", "canary"),
        ("t/shop@" + "a" * 12, "a" * 12),
        ("t/shop@sha256:" + "0" * 64, "0" * 64),
        ("t/shop@" + "A1" * 6, "a1" * 6),
        ("t/shop@sha256:" + "A" * 12, "a" * 12),
    ],
)
def test_a_reference_names_an_adapter_and_perhaps_one_of_its_versions(text: str, target: str) -> None:
    assert AdapterReference.parse(text) == AdapterReference(AdapterName("t", "shop"), target)


@pytest.mark.parametrize(
    "target",
    ["", "0" * 11, "Canary", "sha256:canary", "sha256:", "SHA256:" + "a" * 12, "a" * 65, "ca nary", "a@b"],
)
def test_what_is_neither_alias_nor_digest_is_no_target(target: str) -> None:
    with pytest.raises(InvalidRequestError):
        parse_target(target, "version")


@pytest.mark.parametrize("text", ["a1" * 32, "A1" * 32, "sha256:" + "a1" * 32, "sha256:" + "A1" * 32])
def test_a_digest_is_read_in_all_its_forms(text: str) -> None:
    assert parse_digest(text, "version") == parse_whole_digest(text, "version") == "a1" * 32


@pytest.mark.parametrize("text", ["", "stable", "xyz", "0" * 11, "0" * 65, "sha256:sha256:" + "0" * 64])
def test_what_is_no_digest_is_a_violation_of_its_field(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="version: must be a digest, of which 12 hex digits"):
        parse_digest(text, "version")
    with pytest.raises(InvalidRequestError, match="version: must be a digest of 64 hex digits"):
        parse_whole_digest(text, "version")


def test_a_beginning_is_no_whole_digest() -> None:
    with pytest.raises(InvalidRequestError, match="64 hex digits"):
        parse_whole_digest("0" * 63, "version")


def test_an_alias_does_not_look_like_a_digest() -> None:
    assert parse_alias("a" * 11) == "a" * 11
    with pytest.raises(InvalidRequestError, match="digest"):
        parse_alias("a" * 12)


@pytest.mark.parametrize("parent", ["", "tenants", "tenants/", "tenants/a/b", "tenants/A", "a"])
def test_a_parent_is_a_tenant_or_refused(parent: str) -> None:
    assert parse_tenant("tenants/a-b") == "a-b"
    with pytest.raises(InvalidRequestError):
        parse_tenant(parent)
