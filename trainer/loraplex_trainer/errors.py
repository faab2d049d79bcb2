"""The trainer's branch of the error tree; the root is in `loraplex_adapters.errors`.

LoraplexError
└── TrainerError
    ├── RecipeError           the recipe is malformed or names what is not there
    ├── TrainingDataError     a data file is malformed or does not fit the recipe
    ├── QuantizedBaseError    the base's modules are not quantized as the plan says
    ├── RunFolderError        the folder holds no run, another run, or one of another recipe or other data
    ├── TrainingStorageError  the disk is full
    ├── TrainingDivergedError the loss or the weights are no longer finite
    ├── OutputError           what was made cannot be written, e.g. since the disk is full
    ├── SuiteUnavailableError general questions that are not here
    ├── RunIncompleteError    the run folder has no adapter to package or judge
    ├── GateNotPassedError    the package has not shown that it may be registered
    ├── MergeRefusedError     the adapter may not be merged into that base
    ├── DoesNotFitError       no way to train this model fits the memory; the nearest that does is named
    ├── QuantBackendError     an experimental way to hold the base lacks its library
    └── MeasurementError      the trial steps of `plan --measure` failed
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loraplex_adapters.errors import LoraplexError

if TYPE_CHECKING:
    from loraplex_trainer.plan.training_plan import NearestPlan, RejectedPlan


class TrainerError(LoraplexError):
    """Something about making an adapter."""

    reason = "TRAINER_ERROR"


class RecipeError(TrainerError):
    """The recipe cannot be followed; the message names every field at fault."""

    reason = "RECIPE_INVALID"


class TrainingDataError(TrainerError):
    """A data file cannot be trained on or evaluated; the message names file and line."""

    reason = "TRAINING_DATA_INVALID"


class QuantizedBaseError(TrainerError):
    """The loaded base has other modules in 4 or 8 bits than were asked for; the message names them."""

    reason = "QUANTIZED_BASE_INVALID"


class RunFolderError(TrainerError):
    """The run folder cannot be used as it is; the message says whether to resume or to choose another."""

    reason = "RUN_FOLDER_INVALID"


class TrainingStorageError(TrainerError):
    """The run folder's disk is full; what was written before is whole, and the run can be resumed."""

    reason = "TRAINING_STORAGE_FULL"


class TrainingDivergedError(TrainerError):
    """Training produced NaN or infinity; a lower learning rate usually mends it."""

    reason = "TRAINING_DIVERGED"


class OutputError(TrainerError):
    """A result cannot be written; what stood in its place before is still there."""

    reason = "OUTPUT_FAILED"


class SuiteUnavailableError(TrainerError):
    """A suite of general questions is unknown, or its library or data are not on this machine."""

    reason = "SUITE_UNAVAILABLE"


class RunIncompleteError(TrainerError):
    """A run folder holds no finished adapter yet."""

    reason = "RUN_INCOMPLETE"


class GateNotPassedError(TrainerError):
    """A package without a passed gate of its own weights is not registered, unless forced."""

    reason = "GATE_NOT_PASSED"


class MergeRefusedError(TrainerError):
    """Merging would change or erase what the adapter learned."""

    reason = "MERGE_REFUSED"


class DoesNotFitError(TrainerError):
    """No plan fits the memory there is."""

    reason = "TRAINING_DOES_NOT_FIT"

    def __init__(
        self, message: str, available_bytes: int, nearest: NearestPlan, rejected: tuple[RejectedPlan, ...]
    ) -> None:
        super().__init__(message)
        self.available_bytes = available_bytes
        self.nearest = nearest
        self.rejected = rejected

    @property
    def details(self) -> dict[str, Any]:
        """The numbers behind the message, as JSON values."""
        from dataclasses import asdict

        return {
            "available_bytes": self.available_bytes,
            "nearest": asdict(self.nearest),
            "rejected": [asdict(plan) for plan in self.rejected],
        }


class QuantBackendError(TrainerError):
    """2 bits are experimental: their library is not installed, or cannot quantize this base."""

    reason = "QUANT_BACKEND_UNAVAILABLE"


class MeasurementError(TrainerError):
    """The trial steps ended without a measurement, e.g. because memory ran out after all."""

    reason = "MEASUREMENT_FAILED"
