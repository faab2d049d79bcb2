"""The common advice by size of card and of model, to stand beside a plan that counts bytes."""

from __future__ import annotations

from dataclasses import dataclass

from loraplex_trainer.plan.hardware import GIB, Hardware
from loraplex_trainer.plan.shape import ModelShape
from loraplex_trainer.plan.training_plan import Method


@dataclass(frozen=True, slots=True)
class CardAdvice:
    """What to train on a card of that size: both ends belong to it."""

    name: str
    from_gb: float
    to_gb: float
    model: str
    method: Method


CARD_ADVICE = (
    CardAdvice("gpu24", 24, float("inf"), "13b", "qlora-nf4"),
    CardAdvice("gpu10-20", 10, 20, "7b", "lora-int8"),
    CardAdvice("gpu<10", 0, 9.999, "1.3b", "lora-bf16"),
)
_WORDS = {
    "lora-bf16": "LoRA",
    "lora-fp32": "LoRA in fp32",
    "lora-int8": "LoRA over 8 bits",
    "qlora-nf4": "QLoRA",
    "qlora-2bit": "QLoRA over 2 bits",
}


def card_advice(size_gb: float) -> CardAdvice | None:
    """None between 20 and 24 GB, which the advice leaves open."""
    return next((advice for advice in CARD_ADVICE if advice.from_gb <= size_gb <= advice.to_gb), None)


def model_advice(shape: ModelShape, size_gb: float) -> tuple[Method, ...]:
    """By the size of the model: up to 7B with 10 GB LoRA over 8 bits; from 13B, or below 20 GB, QLoRA.

    Two rules that overlap from 10 to 20 GB, and leave some models open; then both, or none, are returned.
    """
    billions = shape.parameters / 1e9
    advised: list[Method] = []
    if billions < 7.5 and size_gb >= 10:
        advised.append("lora-int8")
    if billions >= 12.5 or size_gb < 20:
        advised.append("qlora-nf4")
    return tuple(advised)


def rule_of_thumb(shape: ModelShape, hardware: Hardware, taken: Method) -> str:
    """The advice for this card and model, and why the plan differs from it if it does."""
    if hardware.device == "cpu":
        return "The common advice is for GPUs; on a CPU the plan goes by the memory alone."
    size = hardware.total_bytes / GIB
    card = card_advice(size)
    by_card = (
        f"{card.model} with {_WORDS[card.method]} ({card.name})"
        if card
        else "nothing (it leaves 20 to 24 GB open)"
    )
    advised = model_advice(shape, size)
    by_model = " or ".join(_WORDS[method] for method in advised) or "nothing"
    text = f"Common advice for {size:.0f} GB: {by_card}; for {shape.name} there: {by_model}. "
    if taken in advised:
        return text + f"The plan agrees: {_WORDS[taken]}."
    return text + (
        f"The plan takes {_WORDS[taken]}: the first that fits of LoRA, LoRA over 8 bits and QLoRA that the recipe "
        "allows, by bytes instead of by class."
    )
