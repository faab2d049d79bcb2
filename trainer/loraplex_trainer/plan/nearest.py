"""Where nothing fits: what would."""

from __future__ import annotations

from dataclasses import replace

from loraplex_trainer.errors import DoesNotFitError
from loraplex_trainer.plan.candidates import allowed_methods
from loraplex_trainer.plan.hardware import described_gpu, gib
from loraplex_trainer.plan.search import Search
from loraplex_trainer.plan.shape import PRESETS
from loraplex_trainer.plan.training_plan import Method, NearestPlan

USUAL_CARDS_GB = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141)
_SHORTEST_ROWS = 64


def does_not_fit(search: Search) -> DoesNotFitError:
    rejected = tuple(search.rejected(None))
    nearest, advice = _nearest(search)
    allowed = allowed_methods(search.recipe, search.hardware)
    least = min(plan.needed_bytes for plan in rejected if plan.method in allowed)
    free = search.hardware.free_bytes
    message = (
        f"{search.model.name} does not fit: the leanest plan that the recipe allows needs {gib(least)}, "
        f"and {search.hardware.name} has {gib(free)} free; {advice}"
    )
    return DoesNotFitError(message, free, nearest, rejected)


def _nearest(search: Search) -> tuple[NearestPlan, str]:
    """What would fit, and the same in words."""
    shorter, card, smaller = _shorter_rows(search), _larger_card(search), _smaller_model(search)
    ways = []
    if shorter:
        ways.append(f"data.max_length {shorter[0]} ({shorter[1]})")
    if card:
        ways.append(f"a card of {card[0]} GB ({card[1]})")
    if smaller:
        ways.append(f"a model of {smaller[0].upper()} here ({smaller[1]})")
    methods = [way[1] for way in (shorter, card, smaller) if way]
    nearest = NearestPlan(
        card_gb=card[0] if card else None,
        max_length=shorter[0] if shorter else None,
        model=smaller[0] if smaller else None,
        method=methods[0] if methods else allowed_methods(search.recipe, search.hardware)[-1],
    )
    return nearest, "what fits: " + ", or ".join(ways) if ways else "no single card trains it"


def _shorter_rows(search: Search) -> tuple[int, Method] | None:
    length = search.row_tokens // 2
    while length >= _SHORTEST_ROWS:
        data = search.recipe.data.model_copy(update={"max_length": length})
        method = _method_of(replace(search, recipe=search.recipe.model_copy(update={"data": data})))
        if method:
            return length, method
        length //= 2
    return None


def _larger_card(search: Search) -> tuple[int, Method] | None:
    for size in USUAL_CARDS_GB:
        method = _method_of(replace(search, hardware=described_gpu(size)))
        if method:
            return size, method
    return None


def _smaller_model(search: Search) -> tuple[str, Method] | None:
    for name, shape in reversed(PRESETS.items()):
        method = _method_of(replace(search, model=shape))
        if shape.parameters < search.model.parameters and method:
            return name, method
    return None


def _method_of(search: Search) -> Method | None:
    """The method that this case would take; None where it does not fit either."""
    found = search.first()
    return found[0].method if found else None
