"""The trainer's branch of the error tree; the root is in `loraplex_adapters.errors`.

LoraplexError
└── TrainerError
    ├── RecipeError           the recipe is malformed or names what is not there
    ├── TrainingDataError     a data file is malformed or does not fit the recipe
    ├── TrainingDivergedError the loss or the weights are no longer finite
    └── OutputError           what was made cannot be written, e.g. since the disk is full
"""

from __future__ import annotations

from loraplex_adapters.errors import LoraplexError


class TrainerError(LoraplexError):
    """Something about making an adapter."""

    reason = "TRAINER_ERROR"


class RecipeError(TrainerError):
    """The recipe cannot be followed; the message names every field at fault."""

    reason = "RECIPE_INVALID"


class TrainingDataError(TrainerError):
    """A data file cannot be trained on or evaluated; the message names file and line."""

    reason = "TRAINING_DATA_INVALID"


class TrainingDivergedError(TrainerError):
    """Training produced NaN or infinity; a lower learning rate usually mends it."""

    reason = "TRAINING_DIVERGED"


class OutputError(TrainerError):
    """A result cannot be written; what stood in its place before is still there."""

    reason = "OUTPUT_FAILED"
