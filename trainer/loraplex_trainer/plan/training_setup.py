"""One way to train: everything that the memory of a training depends on, besides the base's shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loraplex_trainer.plan.training_plan import Compute, Method, Optimizer

_COMPUTE_BYTES: dict[Compute, int] = {"bf16": 2, "fp16": 2, "fp32": 4}
QUANTIZED: frozenset[Method] = frozenset({"lora-int8", "qlora-nf4", "qlora-2bit"})


@dataclass(frozen=True, slots=True)
class TrainingSetup:
    """A candidate of the planner."""

    method: Method
    device: Literal["cpu", "cuda"]
    compute: Compute
    optimizer: Optimizer
    rank: int
    targets: tuple[str, ...]
    dropout: float
    unquantized: tuple[str, ...]  # modules that stay in the compute dtype although the others do not
    double_quant: bool
    row_tokens: int  # of the longest row
    micro_batch: int = 1  # rows of one forward pass
    checkpointing: bool = False
    packing: bool = False

    @property
    def is_quantized(self) -> bool:
        """Whether the base is held in 8 bits or fewer."""
        return self.method in QUANTIZED

    @property
    def compute_bytes(self) -> int:
        """Of one activation."""
        return _COMPUTE_BYTES[self.compute]

    @property
    def lora_bytes(self) -> int:
        """Of one adapter weight: PEFT keeps fp32 over a 16-bit base, TRL takes bf16 over a quantized one."""
        return 2 if self.is_quantized else 4

    @property
    def lora_input_bytes(self) -> int:
        """Of one element that an adapter's product reads: of the adapter's dtype, or of autocast's."""
        return min(self.compute_bytes, self.lora_bytes)

    @property
    def casts_lora_input(self) -> bool:
        """Whether each adapter gets its own copy of its input, even without dropout.

        Over a 16-bit base PEFT casts to the adapter's fp32, and autocast back; over a quantized base it casts only
        where autocast is off.
        """
        if self.is_quantized:
            return self.compute == "fp32"
        return self.compute != "fp32"

    @property
    def tokens(self) -> int:
        """Tokens of one forward pass, padding counted."""
        return self.micro_batch * self.row_tokens

    @property
    def has_mask(self) -> bool:
        """Rows of different lengths, or packed ones, need an attention mask; a single row does not."""
        return self.packing or self.micro_batch > 1
