"""From a recipe, a base and a machine to the plan of a training."""

from __future__ import annotations

from loraplex_trainer.errors import RecipeError
from loraplex_trainer.plan import choices
from loraplex_trainer.plan.candidates import Candidate
from loraplex_trainer.plan.hardware import Hardware, gib
from loraplex_trainer.plan.memory import MARGIN, estimate, needed_bytes
from loraplex_trainer.plan.nearest import does_not_fit
from loraplex_trainer.plan.rule_of_thumb import rule_of_thumb
from loraplex_trainer.plan.search import Search
from loraplex_trainer.plan.shape import ModelShape
from loraplex_trainer.plan.training_plan import Choice, DataSize, TrainingPlan
from loraplex_trainer.plan.training_setup import TrainingSetup
from loraplex_trainer.recipe.document import Recipe


def make_plan(
    recipe: Recipe,
    model: ModelShape,
    hardware: Hardware,
    data: DataSize | None = None,
    correction: float = 1.0,
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
    search = Search(recipe, model, hardware, data, correction)
    found = search.first()
    if found is None:
        raise does_not_fit(search)
    return _described(search, *found)


def _described(search: Search, setup: TrainingSetup, candidate: Candidate) -> TrainingPlan:
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
    reason = (
        f"the first that fits: {gib(needed)} with {MARGIN:.0%} margin, {gib(hardware.free_bytes)} are free"
    )
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
    reason = (
        "activations do not fit without it" if setup.checkpointing else "activations fit; it would cost time"
    )
    return Choice("train.checkpointing", value, reason)
