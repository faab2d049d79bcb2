"""Server branches of the error tree; the root and the adapter branch are in `loraplex_adapters.errors`.

LoraplexError
├── RequestError
│   ├── ContextOverflowError   prompt and completion do not fit the context
│   ├── QueueFullError         too many sequences wait
│   ├── DrainingError          the server is stopping
│   ├── UploadTooLargeError    an upload passed its byte budget
│   ├── WriteStallError        the client left its stream unread for too long
│   └── DeadlineExceededError  the deadline passed while the request waited or ran
├── EngineError
│   ├── EngineUnavailableError the engine is starting or restarting
│   ├── EngineRestartedError   the engine died while the request ran
│   ├── SequenceFailedError    the engine gave up on this one sequence
│   └── KernelError            a kernel does not compile, load or launch on this GPU
├── TrainingJobError
│   ├── TrainingDisabledError     this server trains nothing
│   ├── TrainerMissingError       the trainer's libraries are not installed
│   ├── TrainingJobNotFoundError  no training job of that name
│   ├── TrainingJobStateError     the job is not in a state that allows it
│   └── TrainingJobElsewhereError the job's files are another server's
├── PortInUseError             the address is taken
├── DataDirInUseError          another server holds the data folder
└── BaseModelError
    ├── UnsupportedArchitectureError
    └── BaseModelInvalidError
"""

from __future__ import annotations

from loraplex_adapters.errors import LoraplexError


class RequestError(LoraplexError):
    """A request that cannot be served now or as it is."""

    reason = "REQUEST_ERROR"


class ContextOverflowError(RequestError):
    """The prompt leaves no room for a completion in the model's context."""

    reason = "CONTEXT_OVERFLOW"


class QueueFullError(RequestError):
    """The waiting queue is at its bound. `retry_after_s` estimates when a place will be free."""

    reason = "QUEUE_FULL"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DrainingError(RequestError):
    """The server finishes what it runs and admits nothing new."""

    reason = "DRAINING"


class DeadlineExceededError(RequestError):
    """The caller's deadline, or the server's default one, passed."""

    reason = "DEADLINE_EXCEEDED"


class UploadTooLargeError(RequestError):
    """An adapter upload passed the largest package size."""

    reason = "UPLOAD_TOO_LARGE"


class WriteStallError(RequestError):
    """The client did not read its stream for longer than the server waits."""

    reason = "WRITE_STALLED"


class EngineError(LoraplexError):
    """The engine process cannot serve."""

    reason = "ENGINE_ERROR"


class EngineUnavailableError(EngineError):
    """The engine is loading the base model or restarting after a crash."""

    reason = "ENGINE_UNAVAILABLE"


class EngineRestartedError(EngineError):
    """The engine died while this request ran; the request may be sent again."""

    reason = "ENGINE_RESTARTED"


class SequenceFailedError(EngineError):
    """The engine ended this sequence with an internal error; others are unaffected."""

    reason = "SEQUENCE_FAILED"


class KernelError(EngineError):
    """A kernel does not compile, load or launch on this GPU."""

    reason = "KERNEL_ERROR"


class TrainingJobError(LoraplexError):
    """Something about a training that this server runs."""

    reason = "TRAINING_JOB_ERROR"


class TrainingDisabledError(TrainingJobError):
    """The setting `training` is off."""

    reason = "TRAINING_DISABLED"


class TrainerMissingError(TrainingJobError):
    """The server's installation lacks the extra `trainer`."""

    reason = "TRAINER_MISSING"


class TrainingJobNotFoundError(TrainingJobError):
    """No training job of that name, or it is another tenant's."""

    reason = "TRAINING_JOB_NOT_FOUND"


class TrainingJobStateError(TrainingJobError):
    """What is asked for does not go with the job's state."""

    reason = "TRAINING_JOB_STATE"


class TrainingJobElsewhereError(TrainingJobError):
    """The job belongs to another server of the same registry, which has its events and checkpoints."""

    reason = "TRAINING_JOB_ELSEWHERE"


class PortInUseError(LoraplexError):
    """The server cannot listen where it was told to."""

    reason = "PORT_IN_USE"


class DataDirInUseError(LoraplexError):
    """Two servers cannot share a data folder."""

    reason = "DATA_DIR_IN_USE"


class BaseModelError(LoraplexError):
    """The base model cannot be loaded."""

    reason = "BASE_MODEL_ERROR"


class UnsupportedArchitectureError(BaseModelError):
    """The folder's architecture is not one that the decoder covers; the message lists those."""

    reason = "UNSUPPORTED_ARCHITECTURE"


class BaseModelInvalidError(BaseModelError):
    """The folder is not a complete Hugging Face model."""

    reason = "BASE_MODEL_INVALID"
