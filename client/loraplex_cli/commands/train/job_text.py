"""Training jobs as JSON documents, as text, and as exit codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.failures import CommandError
from loraplex_cli.output import columns, facts

if TYPE_CHECKING:
    from loraplex_client import TrainingEvent, TrainingJob

_CODE_OF_VERDICT = {"fail": ExitCode.WRONG_RESULT, "inconclusive": ExitCode.INCONCLUSIVE}
_CODE_OF_REASON = {
    "TRAINING_DOES_NOT_FIT": ExitCode.DOES_NOT_FIT,
    "TRAINING_DATA_INVALID": ExitCode.BAD_INPUT,
    "RECIPE_INVALID": ExitCode.BAD_INPUT,
}


def document(job: TrainingJob) -> dict[str, Any]:
    """The job as JSON values."""
    return _values(asdict(job))


def event_document(event: TrainingEvent) -> dict[str, Any]:
    """The event as JSON values."""
    return _values(asdict(event))


def job_text(job: TrainingJob) -> str:
    """`name  value` lines of what there is to say."""
    shown: dict[str, object] = {
        "job": job.name or "(not queued)",
        "adapter": job.adapter,
        "alias": job.alias,
        "state": job.state.value,
        "device": job.device,
        "progress": _progress(job),
        "verdict": job.verdict.value,
        "digest": job.digest[:12],
        "attempts": job.attempts,
        "created": job.create_time.isoformat(timespec="seconds"),
    }
    if job.failure is not None:
        shown["failure"] = f"{job.failure.message} ({job.failure.reason})"
        shown["resumable"] = "yes" if job.failure.resumable else "no"
    return facts({name: value for name, value in shown.items() if value not in ("", "none")})


def jobs_text(jobs: Sequence[TrainingJob]) -> str:
    """A table."""
    rows = [(job.name, job.adapter, job.state.value, _progress(job) or "-") for job in jobs]
    return columns(("JOB", "ADAPTER", "STATE", "PROGRESS"), rows)


def event_line(event: TrainingEvent) -> str:
    """One line."""
    state = event.state.value if event.state is not None else ""
    step = f"{event.step}/{event.num_steps}" if event.kind == "step" else ""
    values = " ".join(f"{name}={value:.4g}" for name, value in event.values.items())
    words = (
        event.time.isoformat(timespec="milliseconds"),
        event.kind.value,
        event.stage,
        state,
        step,
        values,
        event.text,
    )
    return "  ".join(filter(None, words))


def failure_of_job(job: TrainingJob) -> CommandError | None:
    """How a command that waited for a job ends; None where it succeeded or has not ended."""
    details = {"job": document(job)}
    if job.state == "paused":
        message = "the job is paused: look at its samples, then `loraplex train jobs resume` or `cancel` it"
        return CommandError(message, ExitCode.PAUSED, "JOB_PAUSED", details)
    if job.state == "cancelled":
        return CommandError("the job was cancelled", ExitCode.FAILURE, "JOB_CANCELLED", details)
    if job.failure is None:
        return None
    code = _CODE_OF_VERDICT.get(job.verdict.value) or _CODE_OF_REASON.get(job.failure.reason)
    return CommandError(job.failure.message, code or ExitCode.FAILURE, job.failure.reason, details)


def _progress(job: TrainingJob) -> str:
    progress = job.progress
    if not progress.stage:
        return ""
    words = [progress.stage]
    if progress.num_steps:
        words.append(f"{progress.step}/{progress.num_steps}")
    if progress.loss is not None:
        words.append(f"loss {progress.loss:.4g}")
    if progress.eta_seconds is not None and job.state.is_unfinished:
        words.append(f"{progress.eta_seconds:.0f} s left")
    return " ".join(words)


def _values(fields: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no moments."""
    return {key: value.isoformat() if isinstance(value, datetime) else value for key, value in fields.items()}
