"""Training jobs on the server under load: created, followed, and ended with the load."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import grpc

from loraplex_client import (
    AsyncLoraplexClient,
    InvalidRequestError,
    LoraplexApiError,
    NotFoundError,
    TrainingEventKind,
    TrainingJob,
    TrainingJobState,
)
from loraplex_loadtest.disturbances.schedule import StartTraining
from loraplex_loadtest.errors import ScenarioInvalidError, TargetFeatureError, TrainingFailedError
from loraplex_loadtest.running.clock import now_s

_CANNOT_TRAIN = ("TRAINING_DISABLED", "TRAINER_MISSING")
_END_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment of a job, since the run began: where its next stage begins."""

    at_s: float
    what: str


class TrainingJobs:
    """The jobs of one run. Those that run when the load ends are cancelled: the run ends with its load."""

    def __init__(self, client: AsyncLoraplexClient) -> None:
        self._client = client
        self._load_ended = asyncio.Event()
        self._unfinished: set[str] = set()
        self.new_adapters: list[str] = []
        """Adapters that there were not before a job made them, and that shall go after the run."""

    async def check(self, what: StartTraining) -> None:
        """Before the load, not in its middle: would the server take the job?

        Raises TargetFeatureError where it does not train, ScenarioInvalidError for what it would refuse.
        """
        try:
            await self._create(what, validate_only=True)
        except InvalidRequestError as error:
            told = "; ".join(f"{one.field}: {one.description}" for one in error.violations) or error.message
            raise ScenarioInvalidError(f"the job of a `train` disturbance: {told}") from None
        except LoraplexApiError as error:
            if error.code is grpc.StatusCode.UNIMPLEMENTED or error.reason in _CANNOT_TRAIN:
                raise TargetFeatureError(
                    f"this server cannot train ({error.message}): start it with --training, take the `train` "
                    "disturbance out, or use `loraplex train run`"
                ) from None
            raise

    async def run(self, what: StartTraining, start_s: float, marks: list[Mark]) -> str:
        """Creates a job and follows it to its end; returns what became of it.

        Raises TrainingFailedError unless it succeeded, was cancelled or paused, or the gate refused it.
        """
        job = await self._create(what)
        self._unfinished.add(job.name)
        is_new = await self._is_new(job.adapter)
        ending = asyncio.create_task(self._cancel_with_the_load(job.name))
        try:
            async with self._client.training.events(job.name) as events:
                async for event in events:
                    if event.kind is TrainingEventKind.STAGE:
                        marks.append(Mark(now_s() - start_s, event.stage))
        finally:
            ending.cancel()
        self._unfinished.discard(job.name)
        job = await self._client.training.get(job.name)
        if job.state is TrainingJobState.SUCCEEDED and is_new and what.delete_after:
            self.new_adapters.append(job.adapter)
        return _told(job)

    def end_load(self) -> None:
        """No request is sent any more, and all have ended."""
        self._load_ended.set()

    async def close(self) -> None:
        """Cancels what a run that was broken off left behind, and awaits its end."""
        for name in self._unfinished:
            with suppress(LoraplexApiError, TimeoutError):
                async with asyncio.timeout(_END_TIMEOUT_S):
                    await self._client.training.cancel(name)
                    async with self._client.training.events(name) as events:
                        async for _ in events:
                            continue

    async def _create(self, what: StartTraining, validate_only: bool = False) -> TrainingJob:
        recipe, sent = read_recipe(what)
        return await self._client.training.create(
            recipe,
            what.tenant,
            files=sent,
            data_folder=what.data_folder,
            alias=what.alias,
            validate_only=validate_only,
        )

    async def _is_new(self, adapter: str) -> bool:
        try:
            await self._client.adapters.get(adapter)
        except NotFoundError:
            return True
        return False

    async def _cancel_with_the_load(self, name: str) -> None:
        await self._load_ended.wait()
        with suppress(LoraplexApiError):  # it has just ended by itself
            await self._client.training.cancel(name)


def read_recipe(what: StartTraining) -> tuple[str, dict[str, bytes]]:
    """The recipe's text, and the files that are sent with it. Raises ScenarioInvalidError if one is missing."""
    recipe, names = what.recipe, what.files
    if isinstance(recipe, str):
        recipe, names = (
            Path(str(files("loraplex_loadtest") / "scenarios/training/recipe.yaml")),
            ("rows.jsonl",),
        )
    try:
        sent = {name: (recipe.parent / name).read_bytes() for name in names}
        return recipe.read_text(encoding="utf-8"), sent
    except OSError as error:
        raise ScenarioInvalidError(f"the recipe of a `train` disturbance: {error.strerror}") from None


def _told(job: TrainingJob) -> str:
    """What became of a job that has ended."""
    progress, failure = job.progress, job.failure
    told = f"{job.name}: {job.state}, in {progress.stage or 'the queue'}"
    if progress.num_steps:
        told += f" {progress.step} of {progress.num_steps}"
    if failure is None:
        return told
    told += f", {failure.reason}: {failure.message}"
    if not failure.reason.startswith("GATE_"):
        raise TrainingFailedError(told)
    return told
