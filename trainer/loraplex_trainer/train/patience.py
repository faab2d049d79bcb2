"""When to stop: after so many evaluations without a lower validation loss."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Patience:
    """Counts evaluations since the best. Perplexity is exp(loss), so the decision is the same for both.

    allowed     evaluations without a lower loss; 0: never stop
    min_epochs  no stop before
    """

    allowed: int
    min_epochs: int
    best_loss: float | None = None
    best_epoch: float = 0.0
    num_worse: int = 0

    def see(self, loss: float, epoch: float) -> bool:
        """Take in one evaluation; whether it is the best so far."""
        if self.best_loss is not None and loss >= self.best_loss:
            self.num_worse += 1
            return False
        self.best_loss, self.best_epoch, self.num_worse = loss, epoch, 0
        return True

    def is_over(self, epoch: float) -> bool:
        """Whether to stop after this epoch."""
        return 0 < self.allowed <= self.num_worse and epoch >= self.min_epochs

    def state(self) -> dict[str, float | None]:
        """What a resumed run needs."""
        return {"best_loss": self.best_loss, "best_epoch": self.best_epoch, "num_worse": self.num_worse}

    def restore(self, state: dict[str, float | None]) -> None:
        """Go on from `state`."""
        self.best_loss = state["best_loss"]
        self.best_epoch = float(state["best_epoch"] or 0)
        self.num_worse = int(state["num_worse"] or 0)
