"""Where a loader takes tensors from."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class WeightSource(Protocol):
    """Tensor name, as in a Hugging Face checkpoint, -> tensor; see `model.checkpoint.Checkpoint`."""

    def tensor(self, name: str) -> Tensor:
        """One tensor, on any device and in any float dtype."""
        ...
