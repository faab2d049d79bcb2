"""The automatic choices, each with its reason."""

from __future__ import annotations

from importlib.util import find_spec

from loraplex_adapters.base_spec import LORA_MODULES
from loraplex_trainer.errors import QuantBackendError, RecipeError
from loraplex_trainer.plan.hardware import Hardware
from loraplex_trainer.plan.shape import ModelShape
from loraplex_trainer.plan.training_plan import Choice, DataSize, Method
from loraplex_trainer.recipe.document import Recipe
from loraplex_trainer.recipe.sections import ATTENTION_MODULES, MLP_MODULES, RANKS

_GIVEN = "given by the recipe"
LARGE_MODEL_PARAMETERS = 30e9
USUAL_LEARNING_RATES = (5e-5, 5e-4)
# Rows below which the rank is enough; more rows than all of these take the last.
_RANK_BY_ROWS = ((1_000, 16), (10_000, 32))
_RANK_OF_MANY_ROWS = 64
_RANK_OF_UNKNOWN_ROWS = 32
SKIP_GROUPS = {"attention": ATTENTION_MODULES, "mlp": MLP_MODULES}


def choose_rank(recipe: Recipe, data: DataSize | None) -> Choice:
    """By the number of rows. Raises RecipeError for a rank that the server would refuse."""
    limit = recipe.resources.max_serving_rank
    rank = recipe.lora.rank
    if rank != "auto":
        if limit is not None and rank > limit:
            raise RecipeError(
                f"lora.rank: {rank} is above resources.max_serving_rank {limit}; the server would refuse the adapter"
            )
        return Choice("lora.rank", str(rank), _GIVEN)
    if data is None:
        rank, reason = _RANK_OF_UNKNOWN_ROWS, "the number of rows is not known yet"
    else:
        rank = next((rank for rows, rank in _RANK_BY_ROWS if data.num_rows < rows), _RANK_OF_MANY_ROWS)
        reason = f"for {data.num_rows} rows: 16 below 1000, 32 below 10000, else 64"
    if limit is not None and int(rank) > limit:
        rank = max((usual for usual in RANKS if usual <= limit), default=limit)
        reason += f"; lowered to what the server serves, {limit}"
    return Choice("lora.rank", str(rank), reason)


def choose_alpha(recipe: Recipe, rank: int) -> Choice:
    """Twice the rank."""
    if recipe.lora.alpha != "auto":
        return Choice("lora.alpha", f"{float(recipe.lora.alpha):g}", _GIVEN)
    return Choice("lora.alpha", str(2 * rank), "twice the rank")


def choose_learning_rate(recipe: Recipe, method: Method, shape: ModelShape) -> Choice:
    """2e-4 for LoRA, 3e-4 for QLoRA, 1e-4 for large models; ten times what full fine-tuning takes, or more."""
    field = "train.learning_rate"
    if recipe.train.learning_rate != "auto":
        return Choice(field, str(recipe.train.learning_rate), _GIVEN)
    if shape.parameters >= LARGE_MODEL_PARAMETERS:
        return Choice(field, "0.0001", "models of 30 billion parameters and more take smaller steps")
    if method.startswith("qlora"):
        return Choice(field, "0.0003", "usual for QLoRA")
    return Choice(field, "0.0002", "usual for LoRA")


def choose_compute(recipe: Recipe, hardware: Hardware) -> Choice:
    """The widest type that the device computes fast in. Raises RecipeError for one that it has not."""
    field, asked = "quant.compute", recipe.quant.compute
    if hardware.device == "cpu":
        if asked == "fp16":
            raise RecipeError("quant.compute: fp16 does not train on a CPU; write auto or fp32")
        if asked == "bf16":
            raise RecipeError("quant.compute: on a CPU bf16 is no faster and less exact; write auto or fp32")
        return Choice(field, "fp32", "a CPU computes in fp32")
    if asked == "bf16" and not hardware.has_bf16:
        raise RecipeError(f"quant.compute: {hardware.name} has no bf16; write auto, fp16 or fp32")
    if asked != "auto":
        return Choice(field, asked, _GIVEN)
    if hardware.has_bf16:
        return Choice(field, "bf16", "the card supports it, and its range needs no loss scaling")
    return Choice(field, "fp16", "the card has no bf16")


def choose_packing(recipe: Recipe, data: DataSize | None) -> Choice:
    """Rows are put together where most are shorter than a quarter of the length."""
    field, asked = "train.packing", recipe.train.packing
    if asked != "auto":
        return Choice(field, str(asked).lower(), _GIVEN)
    if data is None or data.median_tokens is None:
        return Choice(field, "false", "the rows' lengths are not known yet")
    is_short = 4 * data.median_tokens < recipe.data.max_length
    relation = "below" if is_short else "not below"
    reason = f"the median row of {data.median_tokens} tokens is {relation} a quarter of data.max_length"
    return Choice(field, str(is_short).lower(), reason)


def unquantized_modules(recipe: Recipe, method: Method) -> tuple[str, ...]:
    """Modules that stay in the compute dtype, sorted: what `quant.skip` names, groups expanded, and the output head.

    Empty for a base that is not quantized. Raises RecipeError for an unknown module.
    """
    known = {*LORA_MODULES, "lm_head"}
    names = {module for name in recipe.quant.skip for module in SKIP_GROUPS.get(name, (name,))}
    unknown = sorted(names - known)
    if unknown:
        allowed = ", ".join([*SKIP_GROUPS, *sorted(known)])
        raise RecipeError(f"quant.skip: {', '.join(unknown)} is unknown; choose from {allowed}")
    return tuple(sorted({*names, "lm_head"})) if method not in ("lora-bf16", "lora-fp32") else ()


def check_backend(recipe: Recipe, is_installed: bool | None = None) -> None:
    """Raises QuantBackendError where the experimental 2 bits cannot be used. `is_installed` is for tests."""
    backend = recipe.quant.backend
    if backend == "bitsandbytes":
        return
    if is_installed is None:
        is_installed = find_spec(backend) is not None
    if not is_installed:
        raise QuantBackendError(
            f"quant.backend: 2 bits are experimental and need the library {backend}, which is not installed; "
            f"pip install {backend}, or write quant.bits: 4 without a backend"
        )
    if backend == "aqlm":
        raise QuantBackendError(
            "quant.backend: aqlm trains only over a checkpoint that AQLM has quantized before, "
            "and bases here are not quantized; take hqq, or quant.bits: 4"
        )


def notes(recipe: Recipe, rank: int) -> tuple[str, ...]:
    """What is allowed and unusual."""
    found = []
    low, high = USUAL_LEARNING_RATES
    rates = {"train.learning_rate": recipe.train.learning_rate}
    rates |= {f"stages.{stage.name}.learning_rate": stage.learning_rate or "auto" for stage in recipe.stages}
    for field, rate in rates.items():
        if rate != "auto" and not low <= rate <= high:
            found.append(f"{field}: {rate:g} is outside the usual {low:g} to {high:g}")
    if rank not in RANKS:
        found.append(f"lora.rank: {rank} is none of the usual {', '.join(map(str, RANKS))}")
    elif rank == RANKS[-1]:
        found.append("lora.rank: 128 costs memory and time; 32 or 64 usually learn as much")
    if recipe.quant.backend != "bitsandbytes":
        found.append("quant.bits: 2 is experimental")
    return tuple(found)
