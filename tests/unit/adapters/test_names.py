from __future__ import annotations

import pytest

from loraplex_adapters.errors import InvalidRequestError
from loraplex_adapters.names import validate_adapter_name


@pytest.mark.parametrize(
    "name", ["a", "shop-1", "tenants/finance/adapters/faq", "v1.2_b", "x" * 128, "...", ".a"]
)
def test_a_good_name_is_returned(name: str) -> None:
    assert validate_adapter_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x" * 129,
        "A",
        "ä",
        "a b",
        "a,b",
        "a\n",
        "/a",
        "a/",
        "a//b",
        "..",
        ".",
        "a/../b",
        "a/./b",
        "a\\b",
        "a\0",
        "٣",
    ],
)
def test_a_bad_name_is_a_violation_of_its_field(name: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        validate_adapter_name(name, field="adapter.name")

    assert [violation.field for violation in caught.value.violations] == ["adapter.name"]
