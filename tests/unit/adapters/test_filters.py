from __future__ import annotations

import pytest

from loraplex_adapters.errors import InvalidRequestError
from loraplex_adapters.filters import MAX_FILTER_CHARACTERS, AdapterFilter
from loraplex_adapters.names import AdapterName
from loraplex_adapters.registry import AdapterRegistry
from loraplex_adapters.releases import OnExisting
from tests.unit.adapters.release_case import A, B, C, version

EVERYONE = ["shop", "shop_b", "shopping", "sho/faq", "t/shop"]


@pytest.fixture
def filled(registry: AdapterRegistry) -> AdapterRegistry:
    """Five adapters of two and a half tenants that differ in everything a filter can ask for."""
    for i, text in enumerate(EVERYONE):
        registry.register(
            AdapterName.parse(text), version(f"{i}" * 64), labels={"team": "red hats" if i % 2 else "blue"}
        )
    shop, faq = AdapterName.parse("shop"), AdapterName.parse("sho/faq")
    registry.register(shop, version(A), on_existing=OnExisting.ADD_VERSION, alias="canary")
    registry.register(faq, version(B), on_existing=OnExisting.ADD_VERSION)
    registry.deprecate(faq, B)
    registry.mark_failed(AdapterName.parse("t/shop"), "4" * 64)
    registry.set_pinned(faq, True, max_pinned=1)
    registry.update_labels(shop, {"team": "blue", 'a "key" = \\': "=", "AND": "AND"})
    return registry


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("state = READY", {"shop", "shop_b", "shopping", "sho/faq"}),
        ("state=DEPRECATED", {"sho/faq"}),
        ("state = FAILED", {"t/shop"}),
        ("alias = canary", {"shop"}),
        ("alias = stable", set(EVERYONE)),
        ("alias = none", set()),
        ("digest = " + "a" * 12, {"shop"}),
        ("digest = " + "1" * 64, {"shop_b"}),
        ("digest = sha256:" + "A" * 12, {"shop"}),
        ("digest = " + C, set()),
        ("pinned = true", {"sho/faq"}),
        ("pinned = false", set(EVERYONE) - {"sho/faq"}),
        ('labels.team = "red hats"', {"shop_b", "sho/faq"}),
        ("labels.team = blue", {"shop", "shopping", "t/shop"}),
        ("labels.team = b*", set()),
        (r'labels."a \"key\" = \\" = "="', {"shop"}),
        ("labels.AND = AND AND alias = canary", {"shop"}),
        ("name = sho*", {"shop", "shop_b", "shopping", "sho/faq"}),
        ("name = shop_*", {"shop_b"}),  # an underscore is an underscore
        ("name = shop", {"shop"}),
        ("name = t/*", {"t/shop"}),
        ("name = sho/f*", {"sho/faq"}),
        ("name = sho/faq", {"sho/faq"}),
        ("name = *", set(EVERYONE)),
        ("  name = sho*   AND  labels.team = blue AND state = READY ", {"shop", "shopping"}),
    ],
)
def test_a_filter_finds_what_all_its_terms_hold_for(
    filled: AdapterRegistry, text: str, names: set[str]
) -> None:
    where = AdapterFilter.parse(text)

    assert {str(adapter.name) for adapter in filled.list_page(100, where=where)} == names


def test_pages_of_a_filter_are_full_and_complete(registry: AdapterRegistry) -> None:
    names = [AdapterName("t", f"a{i:02}") for i in range(30)]
    for i, name in enumerate(names):
        registry.register(name, version(A), labels={"third": str(i % 3 == 0)})
    where = AdapterFilter.parse("labels.third = True")

    first = registry.list_page(4, tenant="t", where=where)
    second = registry.list_page(4, after=first[-1].name, tenant="t", where=where)
    third = registry.list_page(4, after=second[-1].name, tenant="t", where=where)

    assert [len(page) for page in (first, second, third)] == [4, 4, 2]
    assert [adapter.name for adapter in (*first, *second, *third)] == names[::3]


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_an_empty_filter_is_none(text: str) -> None:
    assert AdapterFilter.parse(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "state",
        "state =",
        "= READY",
        "state = ready",
        "state = READY alias = a",
        "state = READY AND",
        "state = READY AND AND alias = a",
        "state = READY OR alias = a",
        "state = READY ANDalias = a",
        "state != READY",
        "digest = abc",
        "digest = " + "g" * 64,
        "pinned = yes",
        "name = s*p",
        "name = **",
        "colour = red",
        "labels. = red",
        'labels."" = red',
        "labels = red",
        'labels.team = "red',
        'labels.team = "red"hats',
        "labels.team = red hats",
        "alias = a\0",
        "alias = " + "a" * MAX_FILTER_CHARACTERS,
        " AND ".join(["alias = a"] * 17),
    ],
)
def test_what_cannot_be_read_is_a_violation_of_the_filter(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        AdapterFilter.parse(text)

    assert [violation.field for violation in caught.value.violations] == ["filter"]
