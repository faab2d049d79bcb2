"""What a training will do on this machine: every automatic choice made, with its reason and its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

Method = Literal["lora-bf16", "lora-fp32", "lora-int8", "qlora-nf4", "qlora-2bit"]
"""lora-bf16 is any 16 bits: fp16 on a card without bf16; qlora-2bit is experimental."""
Compute = Literal["bf16", "fp16", "fp32"]
Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Predicted peak while training, bytes."""

    base: int
    adapter: int  # weights, gradients and optimizer states
    activations: int
    logits: int
    context: int  # libraries and the device's own
    loading: int = 0  # what reading the base takes beyond what the steps do

    @property
    def total(self) -> int:
        """Sum of the parts."""
        steps = self.adapter + self.activations + self.logits
        return self.base + steps + self.context + self.loading


@dataclass(frozen=True, slots=True)
class Choice:
    """One automatic choice: `field` of the recipe became `value`."""

    field: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class RejectedPlan:
    """A plan that does not fit, or that the recipe rules out."""

    method: Method
    needed_bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class NearestPlan:
    """What would have to change for a training to fit; each part alone is enough, null is none."""

    card_gb: int | None  # smallest usual card that trains this model
    max_length: int | None  # longest rows, in tokens, that fit here
    model: str | None  # largest preset that fits here
    method: Method  # that the first of them would take


@dataclass(frozen=True, slots=True)
class DataSize:
    """What the plan needs to know of the rows. Tokens are those of a rendered row."""

    num_rows: int
    median_tokens: int | None = None
    longest_tokens: int | None = None

    @classmethod
    def of(cls, lengths: Sequence[int]) -> DataSize:
        """Of the tokens of each training row."""
        if not lengths:
            return cls(0)
        return cls(len(lengths), int(median(lengths)), max(lengths))


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """The plan that is taken. Learning rate is per step, batch sizes are rows."""

    method: Method
    device: Literal["cpu", "cuda"]
    compute: Compute
    optimizer: Optimizer
    learning_rate: float
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    unquantized: tuple[str, ...]  # module names that stay in the compute dtype
    double_quant: bool
    micro_batch: int
    accumulation: int
    checkpointing: bool
    packing: bool
    max_length: int
    trainable_parameters: int
    memory: MemoryEstimate
    available_bytes: int
    measured_peak_bytes: int | None  # by `plan --measure`
    choices: tuple[Choice, ...]
    rejected: tuple[RejectedPlan, ...]
    rule_of_thumb: str  # the common advice for this size, and why the plan differs from it if it does
    quant_type: Literal["nf4", "fp4"] = "nf4"
    notes: tuple[str, ...] = ()  # what is allowed and unusual
    planned_tokens: int | None = None  # of the longest row, where shorter than max_length; else null
    measured_step_seconds: float | None = None  # of an optimizer step, by `plan --measure`
