"""What adapters, aliases and versions may be called."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex_adapters.errors import InvalidRequestError
<<<<<<< HEAD
from loraplex_adapters.names import (
    MAX_NAME_CHARACTERS,
    MAX_PART_CHARACTERS,
    AdapterName,
    AdapterReference,
    parse_alias,
    parse_target,
    parse_tenant,
)

PARTS = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True).filter(
    lambda p: p not in ("base", "other")
)
DIGEST = "0123456789abcdef" * 4


@given(PARTS, PARTS)
def test_every_form_of_a_name_is_the_same_adapter(tenant: str, adapter: str) -> None:
    name = AdapterName(tenant, adapter)

    assert AdapterName.parse(name.resource) == AdapterName.parse(f"{tenant}/{adapter}") == name
    assert AdapterName.parse(str(name)) == name
    assert len(name.resource) <= MAX_NAME_CHARACTERS


def test_the_default_tenant_need_not_be_named() -> None:
    assert AdapterName.parse("faq") == AdapterName("default", "faq")
    assert str(AdapterName.parse("default/faq")) == "faq"
    assert str(AdapterName.parse("finance/faq")) == "finance/faq"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a/",
        "/a",
        "a//b",
        "a/b/c",
        "tenants/a/adapters",
        "tenants/a/models/b",
        "../a",
        "a/..",
        ".",
        "A",
        "a b",
        "a,b",
        "a\0b",
        "é",
        "\u0430",  # Cyrillic, looks like an a
        "a@b",
        "x" * (MAX_PART_CHARACTERS + 1),
        "x" * 300,
        "base",
        "other",
        "/etc/passwd",
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    """vLLM #46287: a name taken from a request left the resolver's folder by '..' or an absolute path."""
    with pytest.raises(InvalidRequestError) as caught:
        AdapterName.parse(text)
    assert [violation.field for violation in caught.value.violations] == ["name"]


def test_a_reference_names_an_alias_or_a_version() -> None:
    assert AdapterReference.parse("faq") == AdapterReference(AdapterName("default", "faq"))
    assert AdapterReference.parse("finance/faq@canary").target == "canary"
    assert AdapterReference.parse(f"faq@{DIGEST}").target == DIGEST
    assert AdapterReference.parse(f"tenants/t/adapters/a@sha256:{DIGEST[:12]}").target == DIGEST[:12]


@pytest.mark.parametrize(
    "text", ["faq@", "faq@A", "faq@1abc", "faq@a@b", "faq@sha256:stable", f"faq@{DIGEST}0", "@stable"]
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        AdapterReference.parse(text)


@pytest.mark.parametrize("alias", ["", "A", "9a", "a" * 33, "a b", "abcdefabcdef", "a.b"])
def test_what_is_no_alias_is_refused(alias: str) -> None:
    with pytest.raises(InvalidRequestError, match="alias"):
        parse_alias(alias)


def test_an_alias_is_never_taken_for_a_digest() -> None:
    assert parse_alias("abcdef") == "abcdef"
    assert parse_target("canary", "version") == "canary"
    with pytest.raises(InvalidRequestError, match="version"):
        parse_target("", "version")


def test_a_parent_is_a_tenant() -> None:
    assert parse_tenant("tenants/finance") == "finance"
    for parent in ("finance", "tenants/", "tenants", "tenants/A", "projects/a"):
        with pytest.raises(InvalidRequestError, match="parent"):
            parse_tenant(parent)
=======
from loraplex_adapters.names import AdapterName, AdapterReference, parse_alias, parse_target, parse_tenant


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


BAD_CHARACTERS = ["A", "ä", "a b", "a,b", "a\n", "a\\b", "a\0", "٣", "a@b"]
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
    ],
)
def test_a_reference_names_an_adapter_and_perhaps_one_of_its_versions(text: str, target: str) -> None:
    assert AdapterReference.parse(text) == AdapterReference(AdapterName("t", "shop"), target)


@pytest.mark.parametrize(
    "target", ["", "0" * 11, "A" * 12, "sha256:canary", "sha256:", "a" * 65, "ca nary", "a@b"]
)
def test_what_is_neither_alias_nor_digest_is_no_target(target: str) -> None:
    with pytest.raises(InvalidRequestError):
        parse_target(target, "version")


def test_an_alias_does_not_look_like_a_digest() -> None:
    assert parse_alias("a" * 11) == "a" * 11
    with pytest.raises(InvalidRequestError, match="digest"):
        parse_alias("a" * 12)


@pytest.mark.parametrize("parent", ["", "tenants", "tenants/", "tenants/a/b", "tenants/A", "a"])
def test_a_parent_is_a_tenant_or_refused(parent: str) -> None:
    assert parse_tenant("tenants/a-b") == "a-b"
    with pytest.raises(InvalidRequestError):
        parse_tenant(parent)
>>>>>>> registry
