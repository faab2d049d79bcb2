"""Does to the server what a scenario's schedule says, when it says so, and notes how it went."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraplex_client import AsyncLoraplexClient, LoraplexApiError
from loraplex_client.names import short_name
from loraplex_loadtest.disturbances.engine_process import kill_engine
from loraplex_loadtest.disturbances.schedule import (
    DeleteAdapter,
    KillEngine,
    Occurrence,
    OnServer,
    RegisterAdapters,
    RollBackAdapter,
    StartTraining,
    UpdateAdapter,
    occurrences,
)
from loraplex_loadtest.disturbances.training import Mark, TrainingJobs
from loraplex_loadtest.disturbances.variants import write_variant
from loraplex_loadtest.errors import LoadTestError, ScenarioInvalidError, TargetFeatureError
from loraplex_loadtest.running.clock import now_s
from loraplex_loadtest.scenario import Scenario
from loraplex_loadtest.targets.target import TargetAddress, TargetKind

_REGISTER_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Happening:
    """What was done to the server. Moments since the run began."""

    kind: str
    planned_s: float
    began_s: float
    ended_s: float
    told: str  # what it was done to, or why it failed
    is_failure: bool
    marks: list[Mark] = field(default_factory=list)  # moments in between: the stages of a training

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "planned_s": self.planned_s,
            "began_s": self.began_s,
            "ended_s": self.ended_s,
            "told": self.told,
            "is_failure": self.is_failure,
            "marks": [{"at_s": mark.at_s, "what": mark.what} for mark in self.marks],
        }


class ServerActions:
    """Changes of one server during one run, and their undoing. Use as an async context manager."""

    def __init__(self, scenario: Scenario, address: TargetAddress) -> None:
        self._scenario = scenario
        self._address = address
        self._folder = Path(tempfile.mkdtemp(prefix="loraplex-loadtest-"))
        self._client: AsyncLoraplexClient | None = None
        self._training: TrainingJobs | None = None
        self._next_variant = 0
        self._to_delete: list[str] = []
        self.deleted: set[str] = set()
        self.happened: list[Happening] = []

    async def __aenter__(self) -> ServerActions:
        wants = self._scenario.setup.variants or any(
            isinstance(what, OnServer) for what in self._scenario.disturbances
        )
        if wants and self._address.kind is not TargetKind.LORAPLEX:
            raise TargetFeatureError(
                "adapters and engine can be changed during a run of a Loraplex server alone"
            )
        if wants:
            self._client = AsyncLoraplexClient(self._address.address, timeout_s=_REGISTER_TIMEOUT_S)
            self._training = TrainingJobs(self._client)
            try:
                await self._check_trainings(self._training)
            except BaseException:
                await self.__aexit__()
                raise
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._client is not None and self._training is not None:
            await self._training.close()
            for name in (*self._to_delete, *map(short_name, self._training.new_adapters)):
                try:
                    await self._client.adapters.delete(name)
                except LoraplexApiError:
                    continue  # deleted by the scenario itself, or the server is gone
            await self._client.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def register_variants(self, on_registered: Callable[[int, int], None]) -> list[str]:
        """Those of the scenario's setup; returns their names."""
        setup = self._scenario.setup
        names = [f"{setup.prefix}-{number:04d}" for number in range(setup.variants)]
        for done, name in enumerate(names, start=1):
            if not setup.keep:
                self._to_delete.append(name)  # before: an upload that is broken off may have come through
            await self._upload(name, None, on_existing="promote")
            on_registered(done, len(names))
        return names

    async def follow(self, start_s: float, first_adapter: str) -> None:
        """The whole schedule; each occurrence in its moment, whether the one before has ended or not."""
        tasks = [
            asyncio.create_task(self._at(start_s, occurrence, first_adapter))
            for occurrence in occurrences(self._scenario.disturbances, OnServer)
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def end_load(self) -> None:
        """Every request has ended: what lasts as long as the load ends too."""
        if self._training is not None:
            self._training.end_load()

    async def _check_trainings(self, training: TrainingJobs) -> None:
        for what in self._scenario.disturbances:
            if isinstance(what, StartTraining):
                await training.check(what)

    async def _at(self, start_s: float, occurrence: Occurrence, first_adapter: str) -> None:
        await asyncio.sleep(max(0.0, start_s + occurrence.at_s - now_s()))
        began_s = now_s() - start_s
        is_failure = False
        marks: list[Mark] = []
        try:
            told = await self._do(occurrence, first_adapter, start_s, marks)
        except (LoadTestError, LoraplexApiError) as error:
            told, is_failure = str(error), True
        self.happened.append(
            Happening(
                occurrence.what.kind, occurrence.at_s, began_s, now_s() - start_s, told, is_failure, marks
            )
        )

    async def _do(self, occurrence: Occurrence, first_adapter: str, start_s: float, marks: list[Mark]) -> str:
        assert self._client is not None
        assert self._training is not None
        match occurrence.what:
            case RegisterAdapters() as what:
                names = [f"{what.prefix}-{occurrence.number}-{number:03d}" for number in range(what.count)]
                for name in names:
                    if what.delete_after:
                        self._to_delete.append(name)
                    await self._upload(name, what.package, on_existing="promote")
                return ", ".join(names)
            case UpdateAdapter() as what:
                name = _named(what.name, first_adapter)
                return f"{name}@{await self._upload(name, what.package, on_existing='promote')}"
            case RollBackAdapter() as what:
                name = _named(what.name, first_adapter)
                adapter = await self._client.adapters.rollback(name)
                return f"{name}@{adapter.digest[:12]}"
            case DeleteAdapter() as what:
                self.deleted.add(what.name)  # before: its counters go away with it
                await self._client.adapters.delete(what.name)
                return what.name
            case StartTraining() as what:
                return await self._training.run(what, start_s, marks)
            case KillEngine():
                return f"process {kill_engine(self._address.address)}"
        raise AssertionError(occurrence.what)

    async def _upload(self, name: str, package: Path | None, on_existing: Any) -> str:
        """Registers another variant; returns the beginning of its digest."""
        assert self._client is not None
        source = package or self._scenario.setup.package
        if source is None:
            raise ScenarioInvalidError("no package to make adapters of: set setup.package, or give --package")
        number, self._next_variant = self._next_variant, self._next_variant + 1
        folder = await asyncio.to_thread(write_variant, source, self._folder / "package", number)
        made = await self._client.adapters.upload(name, folder, on_existing=on_existing)
        return made.digest[:12]


def _named(name: str | None, first_adapter: str) -> str:
    if not (found := name or first_adapter):
        raise ScenarioInvalidError("the run has no adapter to change: name one in the disturbance")
    return found
