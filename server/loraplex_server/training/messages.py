"""What goes to a job's process, and what comes back: lines of JSON, since reading them can run no code.

The trainer's side is `loraplex_trainer.jobs`, which imports this; nothing here imports the trainer.
"""

from __future__ import annotations

import msgspec

MAX_TEXT = 2000
"""Characters of a text that is told."""


class Violation(msgspec.Struct, frozen=True):
    """One thing wrong with a recipe."""

    field: str  # of the recipe, "data.sources.0.path"
    description: str


class CheckOrder(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Say whether this recipe can be followed. Answered by one Checked or LibraryMissing."""

    recipe: str
    tenant: str
    folder: str  # that the recipe's paths are relative to
    base_id: str  # what the recipe may call the base that is served
    base_fingerprint: str
    max_rank: int  # that will be served


class RunOrder(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Do this job. Answered by any number of StageBegan, StepDone, Measured and Said, and one Outcome."""

    recipe: str
    tenant: str
    data_folder: str  # that the recipe's paths are relative to
    run_folder: str
    base_folder: str
    precision: str  # of the server that will serve it
    max_rank: int
    is_resumed: bool  # whether an attempt before this one may have left something to go on from
    max_waiting: int  # requests that may wait at the server; with more of them no step begins
    max_pause_s: float  # longest wait between two steps
    other_packages: tuple[str, ...] = ()  # adapters whose answers must stay as they are


class QueueDepth(msgspec.Struct, frozen=True, tag=True):
    """So many requests wait at the server now."""

    waiting: int


class CancelOrder(msgspec.Struct, frozen=True, tag=True):
    """End at the next step."""


Command = CheckOrder | RunOrder | QueueDepth | CancelOrder


class LibraryMissing(msgspec.Struct, frozen=True, tag=True):
    """The installation lacks a library that training needs."""

    library: str


class Checked(msgspec.Struct, frozen=True, tag=True):
    """The recipe can be followed if there are no violations."""

    violations: list[Violation]
    adapter: str  # the recipe's name
    device: str  # auto, cpu or cuda


class StageBegan(msgspec.Struct, frozen=True, tag=True):
    """A stage of the job begins."""

    stage: str


class StepDone(msgspec.Struct, frozen=True, tag=True):
    """Part of a stage is done."""

    stage: str
    step: int
    num_steps: int
    loss: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    paused_s: float = 0.0  # for which this step gave way to the server


class Measured(msgspec.Struct, frozen=True, tag=True):
    """Something was measured."""

    stage: str
    values: dict[str, float]
    text: str = ""


class Said(msgspec.Struct, frozen=True, tag=True):
    """A message for people."""

    text: str
    stage: str = ""
    is_warning: bool = False


class Outcome(msgspec.Struct, frozen=True, tag=True):
    """How it ended. It is written to `outcome.json` in the job's folder before it is told."""

    status: str  # packaged: passed the gate; failed; paused; cancelled
    reason: str = ""
    message: str = ""
    is_resumable: bool = False
    verdict: str = ""  # pass, fail, inconclusive; empty: the gate was not asked


Report = LibraryMissing | Checked | StageBegan | StepDone | Measured | Said | Outcome

_encoder = msgspec.json.Encoder()
_commands = msgspec.json.Decoder(Command)
_reports = msgspec.json.Decoder(Report)
_outcomes = msgspec.json.Decoder(Outcome)


def encode(message: Command | Report) -> bytes:
    """One line."""
    return _encoder.encode(message) + b"\n"


def decode_command(line: bytes) -> Command:
    """Raises msgspec.MsgspecError."""
    command: Command = _commands.decode(line)
    return command


def decode_report(line: bytes) -> Report:
    """Raises msgspec.MsgspecError."""
    report: Report = _reports.decode(line)
    return report


def decode_outcome(content: bytes) -> Outcome:
    """Raises msgspec.MsgspecError."""
    return _outcomes.decode(content)
