"""One attempt at a job: its process from start to end, watched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from loraplex_server.training.job_folder import JobFolder
from loraplex_server.training.messages import (
    CancelOrder,
    Checked,
    LibraryMissing,
    Outcome,
    QueueDepth,
    Report,
    RunOrder,
)
from loraplex_server.training.process import TrainerProcess
from loraplex_server.training.settings import TrainingLimits

_LOOK_EVERY_S = 0.1
_WEIGH_EVERY_S = 1.0
_CANCEL_GRACE_S = 20.0  # in which a process that was told to end may do so in order
_FAREWELL_S = 10.0  # in which one that has told its outcome may end

OnReport = Callable[[Report], Awaitable[None]]


class Attempt:
    """Owned by the event loop. Cancelling `run` kills the process."""

    def __init__(
        self,
        folder: JobFolder,
        limits: TrainingLimits,
        queue_depth: Callable[[], int],
        on_report: OnReport,
    ) -> None:
        """`queue_depth` is asked often: how many requests wait."""
        self._folder = folder
        self._limits = limits
        self._queue_depth = queue_depth
        self._on_report = on_report
        self._cancelled_s: float | None = None
        self._killed_for: Outcome | None = None
        self.process_id: int | None = None

    def cancel(self) -> None:
        """End it at its next step, or soon in any case."""
        if self._cancelled_s is None:
            self._cancelled_s = time.monotonic()

    async def run(self, order: RunOrder) -> Outcome:
        """How it ended. Raises StorageError where no process can be started."""
        await asyncio.to_thread(self._folder.begin_attempt)
        process = await TrainerProcess.start(self._folder.path, self._limits.num_threads, self._folder.output)
        self.process_id = process.process_id
        watch = asyncio.create_task(self._watch(process))
        told: Outcome | None = None
        try:
            await process.send(order)
            async for report in process.reports():
                match report:
                    case Outcome():
                        told = report
                        break
                    case LibraryMissing(library=library):
                        told = Outcome("failed", "TRAINER_MISSING", f"the server lacks '{library}'", True)
                        break
                    case Checked():
                        pass
                    case _:
                        await self._on_report(report)
            with suppress(TimeoutError):
                async with asyncio.timeout(_FAREWELL_S):
                    await process.wait()
        finally:
            watch.cancel()
            process.kill()
            returncode = await process.wait()
        return await self._outcome(told, returncode)

    async def _outcome(self, told: Outcome | None, returncode: int) -> Outcome:
        told = told or await asyncio.to_thread(self._folder.outcome)
        if told is not None:
            return told
        if self._cancelled_s is not None:
            return Outcome("cancelled")
        if self._killed_for is not None:
            return self._killed_for
        how = f"by signal {-returncode}" if returncode < 0 else f"with exit code {returncode}"
        reason = "JOB_KILLED" if returncode < 0 else "JOB_CRASHED"
        message = (
            f"the job's process ended {how}; the server's log folder of the job has its output; resume it"
        )
        return Outcome("failed", reason, message, is_resumable=True)

    async def _watch(self, process: TrainerProcess) -> None:
        """Tell the process how deep the queue is, and end it where it passes a bound."""
        began_s = weighed_s = time.monotonic()
        depth, is_told = 0, False
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            now_s = time.monotonic()
            if (depth_now := self._queue_depth()) != depth:
                depth = depth_now
                await process.send(QueueDepth(depth))
            if self._cancelled_s is not None:
                if not is_told:
                    is_told = True
                    await process.send(CancelOrder())
                if now_s - self._cancelled_s > _CANCEL_GRACE_S:
                    process.kill()
            if now_s - began_s > self._limits.time_s:
                self._kill(process, "JOB_OUT_OF_TIME", f"{self._limits.time_s:g} s of time")
            if now_s - weighed_s > _WEIGH_EVERY_S:
                weighed_s = now_s
                if await asyncio.to_thread(process.resident_bytes) > self._limits.memory_bytes:
                    self._kill(process, "JOB_OUT_OF_MEMORY", f"{self._limits.memory_bytes} bytes of memory")

    def _kill(self, process: TrainerProcess, reason: str, budget: str) -> None:
        if self._killed_for is None:
            message = f"the job took more than {budget}, its budget; resume it when there is more"
            self._killed_for = Outcome("failed", reason, message, is_resumable=True)
            process.kill()
