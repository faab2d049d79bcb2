"""What a load test can fail with. Not of the server's tree: this package sees only the wire.

LoadTestError
├── ScenarioInvalidError     SCENARIO_INVALID: the scenario, a trace or a length file cannot be followed
├── PromptLengthError        PROMPT_LENGTH: no text of exactly that many tokens
├── TargetFeatureError       TARGET_FEATURE: the target cannot do what a disturbance or a setup asks for
├── TargetUnreadyError       TARGET_UNREADY: the target did not answer before the run
├── ResultInvalidError       RESULT_INVALID: a file is no result of this tool, or of another schema
├── TrainingFailedError      TRAINING_FAILED: a training job of a disturbance broke down
└── GeneratorFailedError     GENERATOR_FAILED: a generator process died
"""

from __future__ import annotations


class LoadTestError(Exception):
    """Root. `reason` is stable; docs/errors.md has it."""

    reason = "LOADTEST_FAILED"


class ScenarioInvalidError(LoadTestError):
    """The scenario says something that does not exist or does not fit."""

    reason = "SCENARIO_INVALID"


class PromptLengthError(LoadTestError):
    """The tokenizer has no text of the asked length."""

    reason = "PROMPT_LENGTH"


class TargetFeatureError(LoadTestError):
    """The target has no such call."""

    reason = "TARGET_FEATURE"


class TargetUnreadyError(LoadTestError):
    """Nothing that answers at the target's address."""

    reason = "TARGET_UNREADY"


class ResultInvalidError(LoadTestError):
    """Not a result document that can be read."""

    reason = "RESULT_INVALID"


class TrainingFailedError(LoadTestError):
    """A job came to an end that is none of the gate's: what it cost the load is not what a training costs."""

    reason = "TRAINING_FAILED"


class GeneratorFailedError(LoadTestError):
    """A process that sends requests ended before its run did."""

    reason = "GENERATOR_FAILED"
