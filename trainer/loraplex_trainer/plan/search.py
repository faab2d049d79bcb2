"""Tries the candidates on one machine, and counts what those that are not taken would need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from loraplex_trainer.plan import choices
from loraplex_trainer.plan.candidates import (
    Candidate,
    all_methods,
    allowed_methods,
    candidates,
    first_that_fits,
    leanest,
)
from loraplex_trainer.plan.hardware import Hardware, gib
from loraplex_trainer.plan.memory import estimate, needed_bytes
from loraplex_trainer.plan.shape import ModelShape
from loraplex_trainer.plan.training_plan import Compute, DataSize, RejectedPlan
from loraplex_trainer.plan.training_setup import TrainingSetup
from loraplex_trainer.recipe.document import Recipe


@dataclass(frozen=True, slots=True)
class Search:
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
                yield RejectedPlan(
                    method, self.needs(Candidate(method, "adamw")), f"ruled out by the recipe: {asked}"
                )
        for candidate in candidates(self.recipe, self.hardware):
            if candidate == taken:
                return
            needed = self.needs(candidate)
            lean = " with the paged 8-bit optimizer" if candidate.is_last_resort else ""
            why = f"needs {gib(needed)}{lean} and the margin, {gib(self.hardware.free_bytes)} are free"
            yield RejectedPlan(candidate.method, needed, why)
