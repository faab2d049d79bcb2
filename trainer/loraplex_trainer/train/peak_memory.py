"""Peak memory of a training, in the terms that it was planned in."""

from __future__ import annotations

from loraplex_trainer.plan.peak import peak_bytes, reset_peak
from loraplex_trainer.plan.training_plan import TrainingPlan


class PeakMemory:
    """Counts from its making on."""

    def __init__(self, plan: TrainingPlan) -> None:
        self._plan = plan
        reset_peak(plan.device)

    @property
    def peak_bytes(self) -> int:
        """The peak so far: on CUDA what torch allocated and the plan's allowance for the driver, else the process."""
        return peak_bytes(self._plan.device, self._plan.memory.context)
