"""From a recipe, a base and a machine to the plan of a training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from loraplex_trainer.errors import DoesNotFitError, RecipeError
from loraplex_trainer.plan import choices
from loraplex_trainer.plan.candidates import (
    Candidate,
    all_methods,
    allowed_methods,
    candidates,
    first_that_fits,
    leanest,
)
from loraplex_trainer.plan.hardware import GIB, Hardware, described_gpu
from loraplex_trainer.plan.memory import MARGIN, estimate, needed_bytes
from loraplex_trainer.plan.rule_of_thumb import rule_of_thumb
from loraplex_trainer.plan.setup import TrainingSetup
from loraplex_trainer.plan.shape import PRESETS, ModelShape
from loraplex_trainer.plan.training_plan import (
    Choice,
    Compute,
    DataSize,
    Method,
    NearestPlan,
    RejectedPlan,
    TrainingPlan,
)
from loraplex_trainer.recipe.document import Recipe

USUAL_CARDS_GB = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141)
_SHORTEST_ROWS = 64


def make_plan(
    recipe: Recipe, model: ModelShape, hardware: Hardware, data: DataSize | None = None, correction: float = 1.0
) -> TrainingPlan:
    """The first way to train that fits `hardware` with a margin of ten percent, and the reasons for it.

    correction  what a measurement found the peak to be, as a multiple of the estimate.

    Raises DoesNotFitError with the nearest plan that fits; RecipeError for what the recipe asks and cannot have;
    QuantBackendError.
    """
    choices.check_backend(recipe)
    if recipe.data.max_length > model.max_context_tokens:
        raise RecipeError(
            f"data.max_length: {recipe.data.max_length} tokens are more than the base's context "
            f"of {model.max_context_tokens}"
        )
    search = _Search(recipe, model, hardware, data, correction)
    found = search.first()
    if found is None:
        raise _does_not_fit(search)
    return _described(search, *found)


@dataclass(frozen=True, slots=True)
class _Search:
    """One machine, one base, one recipe."""

    recipe: Recipe
    model: ModelShape
    hardware: Hardware
    data: DataSize | None
    correction: float

    @property
    def row_tokens(self) -> int:
        """Of the longest row that will be trained on."""
        longest = self.data.longest_tokens if self.data else None
        packs = choices.choose_packing(self.recipe, self.data).value == "true"
        whole = self.recipe.data.max_length
        return whole if longest is None or packs else min(longest, whole)

    def setup(self, candidate: Candidate) -> TrainingSetup:
        """The candidate with micro-batch 1."""
        recipe = self.recipe
        compute: Compute = choices.choose_compute(recipe, self.hardware).value  # type: ignore[assignment]
        return TrainingSetup(
            method=candidate.method,
            device=self.hardware.device,
            compute=compute,
            optimizer=candidate.optimizer,
            rank=int(choices.choose_rank(recipe, self.data).value),
            targets=recipe.lora.modules(),
            dropout=recipe.lora.dropout,
            unquantized=choices.unquantized_modules(recipe, candidate.method),
            double_quant=recipe.quant.double,
            row_tokens=self.row_tokens,
            packing=choices.choose_packing(recipe, self.data).value == "true",
        )

    def first(self) -> tuple[TrainingSetup, Candidate] | None:
        """The candidate that is taken."""
        for candidate in candidates(self.recipe, self.hardware):
            setup = first_that_fits(
                self.recipe,
                self.model,
                self.setup(candidate),
                candidate.is_last_resort,
                self.hardware.free_bytes,
                self.correction,
            )
            if setup is not None:
                return setup, candidate
        return None

    def needs(self, candidate: Candidate) -> int:
        """Bytes, margin included, that the candidate needs at least."""
        setup = leanest(self.recipe, self.setup(candidate), candidate.is_last_resort)
        return needed_bytes(estimate(self.model, setup), self.correction)

    def rejected(self, taken: Candidate | None) -> Iterator[RejectedPlan]:
        """What comes before `taken` in the order of preference, or everything."""
        allowed = allowed_methods(self.recipe, self.hardware)
        for method in all_methods(self.hardware):
            if method not in allowed:
                asked = f"method {self.recipe.method}, quant.bits {self.recipe.quant.bits}"
                yield RejectedPlan(method, self.needs(Candidate(method, "adamw")), f"ruled out by the recipe: {asked}")
        for candidate in candidates(self.recipe, self.hardware):
            if candidate == taken:
                return
            needed = self.needs(candidate)
            lean = " with the paged 8-bit optimizer" if candidate.is_last_resort else ""
            why = f"needs {_gib(needed)}{lean} and the margin, {_gib(self.hardware.free_bytes)} are free"
            yield RejectedPlan(candidate.method, needed, why)


def _described(search: _Search, setup: TrainingSetup, candidate: Candidate) -> TrainingPlan:
    recipe, model, hardware = search.recipe, search.model, search.hardware
    rate = choices.choose_learning_rate(recipe, setup.method, model)
    alpha = choices.choose_alpha(recipe, setup.rank)
    memory = estimate(model, setup)
    rejected = tuple(search.rejected(candidate))
    made = (
        _method_choice(setup, needed_bytes(memory, search.correction), hardware),
        choices.choose_compute(recipe, hardware),
        _optimizer_choice(recipe, candidate),
        rate,
        choices.choose_rank(recipe, search.data),
        alpha,
        _batch_choice(recipe, setup),
        _checkpointing_choice(recipe, setup),
        choices.choose_packing(recipe, search.data),
    )
    return TrainingPlan(
        method=setup.method,
        device=setup.device,
        compute=setup.compute,
        optimizer=setup.optimizer,
        learning_rate=float(rate.value),
        rank=setup.rank,
        alpha=float(alpha.value),
        target_modules=setup.targets,
        unquantized=setup.unquantized,
        double_quant=setup.double_quant,
        micro_batch=setup.micro_batch,
        accumulation=recipe.train.effective_batch // setup.micro_batch,
        checkpointing=setup.checkpointing,
        packing=setup.packing,
        max_length=recipe.data.max_length,
        trainable_parameters=model.trainable_parameters(setup.rank, setup.targets),
        memory=memory,
        available_bytes=hardware.free_bytes,
        measured_peak_bytes=None,
        choices=made,
        rejected=rejected,
        rule_of_thumb=rule_of_thumb(model, hardware, setup.method),
        quant_type=recipe.quant.type,
        notes=choices.notes(recipe, setup.rank),
        planned_tokens=setup.row_tokens if setup.row_tokens < recipe.data.max_length else None,
    )


def _method_choice(setup: TrainingSetup, needed: int, hardware: Hardware) -> Choice:
    reason = f"the first that fits: {_gib(needed)} with the margin of {MARGIN:.0%}, {_gib(hardware.free_bytes)} are free"
    return Choice("method", setup.method, reason)


def _optimizer_choice(recipe: Recipe, candidate: Candidate) -> Choice:
    if recipe.train.optimizer != "auto":
        return Choice("train.optimizer", candidate.optimizer, "given by the recipe")
    reason = "its states fit"
    if candidate.is_last_resort:
        reason = "memory is tight: its states take a quarter, and may leave the card"
    return Choice("train.optimizer", candidate.optimizer, reason)


def _batch_choice(recipe: Recipe, setup: TrainingSetup) -> Choice:
    if recipe.train.micro_batch != "auto":
        return Choice("train.micro_batch", str(setup.micro_batch), "given by the recipe")
    whole = recipe.train.effective_batch
    limit = ", at most 4 on a CPU" if setup.device == "cpu" else ""
    reason = f"the largest power of two that fits and divides train.effective_batch {whole}{limit}"
    return Choice("train.micro_batch", str(setup.micro_batch), reason)


def _checkpointing_choice(recipe: Recipe, setup: TrainingSetup) -> Choice:
    value = str(setup.checkpointing).lower()
    if recipe.train.checkpointing != "auto":
        return Choice("train.checkpointing", value, "given by the recipe")
    reason = "activations do not fit without it" if setup.checkpointing else "activations fit; it would cost time"
    return Choice("train.checkpointing", value, reason)


def _does_not_fit(search: _Search) -> DoesNotFitError:
    rejected = tuple(search.rejected(None))
    nearest, advice = _nearest(search)
    allowed = allowed_methods(search.recipe, search.hardware)
    least = min(plan.needed_bytes for plan in rejected if plan.method in allowed)
    free = search.hardware.free_bytes
    message = (
        f"{search.model.name} does not fit: the leanest plan that the recipe allows needs {_gib(least)}, "
        f"and {search.hardware.name} has {_gib(free)} free; {advice}"
    )
    return DoesNotFitError(message, free, nearest, rejected)


def _nearest(search: _Search) -> tuple[NearestPlan, str]:
    """What would fit, and the same in words."""
    cards = ((gb, _changed(search, hardware=described_gpu(gb))) for gb in USUAL_CARDS_GB)
    card = next(((gb, method) for gb, method in cards if method), None)
    shorter = _shorter_rows(search)
    models = [preset for preset in PRESETS.values() if preset.parameters < search.model.parameters]
    smaller = ((preset.name, _changed(search, model=preset)) for preset in reversed(models))
    other = next(((name, method) for name, method in smaller if method), None)
    ways = []
    if shorter:
        ways.append(f"data.max_length {shorter[0]} ({shorter[1]})")
    if card:
        ways.append(f"a card of {card[0]} GB ({card[1]})")
    if other:
        ways.append(f"a model of {other[0].upper()} here ({other[1]})")
    allowed = allowed_methods(search.recipe, search.hardware)
    method = next((way[1] for way in (shorter, card, other) if way), allowed[-1])
    nearest = NearestPlan(
        card_gb=card[0] if card else None,
        max_length=shorter[0] if shorter else None,
        model=other[0] if other else None,
        method=method,
    )
    return nearest, "what fits: " + ", ".join(ways) if ways else "nothing near it fits on one card"


def _shorter_rows(search: _Search) -> tuple[int, Method] | None:
    length = search.row_tokens // 2
    while length >= _SHORTEST_ROWS:
        method = _changed(search, max_length=length)
        if method:
            return length, method
        length //= 2
    return None


def _changed(
    search: _Search,
    hardware: Hardware | None = None,
    model: ModelShape | None = None,
    max_length: int | None = None,
) -> Method | None:
    """The method that the changed case would take; None where it does not fit either."""
    recipe = search.recipe
    if max_length is not None:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_length": max_length})})
    other = _Search(recipe, model or search.model, hardware or search.hardware, search.data, search.correction)
    found = other.first()
    return found[0].method if found else None


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
