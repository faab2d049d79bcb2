"""Which ways to train are tried, in which order, and the largest batch of one that fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from loraplex_trainer.errors import RecipeError
from loraplex_trainer.plan.hardware import Hardware
from loraplex_trainer.plan.memory import estimate, needed_bytes
from loraplex_trainer.plan.shape import ModelShape
from loraplex_trainer.plan.training_plan import Method, Optimizer
from loraplex_trainer.plan.training_setup import TrainingSetup
from loraplex_trainer.recipe.document import Recipe

MAX_CPU_MICRO_BATCH = 4
_METHOD_OF_BITS: dict[int, Method] = {16: "lora-bf16", 8: "lora-int8", 4: "qlora-nf4", 2: "qlora-2bit"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A method and its optimizer; a last resort gives up batch and speed for memory."""

    method: Method
    optimizer: Optimizer
    is_last_resort: bool = False


def all_methods(hardware: Hardware) -> tuple[Method, ...]:
    """From the truest base to the smallest."""
    first: Method = "lora-fp32" if hardware.device == "cpu" else "lora-bf16"
    return (first, "lora-int8", "qlora-nf4")


def allowed_methods(recipe: Recipe, hardware: Hardware) -> tuple[Method, ...]:
    """Those that the recipe leaves open, in the order in which they are tried."""
    if recipe.quant.bits == 16 or recipe.quant.compute == "fp32":
        first: Method = "lora-fp32" if _computes_fp32(recipe, hardware) else "lora-bf16"
    else:
        first = all_methods(hardware)[0]
    if recipe.quant.bits != "auto":
        method = _METHOD_OF_BITS[recipe.quant.bits]
        return (first if method == "lora-bf16" else method,)
    if recipe.method == "lora":
        return (first, "lora-int8")
    if recipe.method == "qlora":
        return ("qlora-nf4",)
    return (first, "lora-int8", "qlora-nf4")


def _computes_fp32(recipe: Recipe, hardware: Hardware) -> bool:
    return hardware.device == "cpu" or recipe.quant.compute == "fp32"


def candidates(recipe: Recipe, hardware: Hardware) -> Iterator[Candidate]:
    """In the order of preference. Raises RecipeError for an optimizer that the device lacks."""
    asked = recipe.train.optimizer
    if hardware.device == "cpu" and asked not in ("auto", "adamw"):
        raise RecipeError(f"train.optimizer: {asked} needs a GPU; write auto or adamw")
    methods = allowed_methods(recipe, hardware)
    for method in methods:
        yield Candidate(method, "adamw" if asked == "auto" else asked)
    if asked == "auto" and hardware.device == "cuda" and methods[-1].startswith("qlora"):
        yield Candidate(methods[-1], "paged_adamw_8bit", is_last_resort=True)


def variants(recipe: Recipe, setup: TrainingSetup, is_last_resort: bool) -> Iterator[TrainingSetup]:
    """`setup` in every batch that the recipe allows: without checkpointing first, large batches first."""
    asked = recipe.train.checkpointing
    ways = ([True] if is_last_resort else [False, True]) if asked == "auto" else [asked]
    sizes = (
        [1] if is_last_resort and recipe.train.micro_batch == "auto" else micro_batches(recipe, setup.device)
    )
    for checkpointing in ways:
        for size in sizes:
            yield replace(setup, checkpointing=checkpointing, micro_batch=size)


def micro_batches(recipe: Recipe, device: str) -> list[int]:
    """Powers of two that divide the effective batch, largest first. Raises RecipeError for one that does not."""
    whole, asked = recipe.train.effective_batch, recipe.train.micro_batch
    if asked != "auto":
        if whole % asked:
            raise RecipeError(f"train.micro_batch: {asked} does not divide train.effective_batch {whole}")
        return [asked]
    sizes = [2**power for power in range(whole.bit_length()) if whole % 2**power == 0]
    return [size for size in reversed(sizes) if device == "cuda" or size <= MAX_CPU_MICRO_BATCH]


def first_that_fits(
    recipe: Recipe,
    shape: ModelShape,
    setup: TrainingSetup,
    is_last_resort: bool,
    available: int,
    correction: float,
) -> TrainingSetup | None:
    """The preferred variant within `available` bytes, margin included."""
    for variant in variants(recipe, setup, is_last_resort):
        if needed_bytes(estimate(shape, variant), correction) <= available:
            return variant
    return None


def leanest(recipe: Recipe, setup: TrainingSetup, is_last_resort: bool) -> TrainingSetup:
    """The variant of least memory."""
    return list(variants(recipe, setup, is_last_resort))[-1]
