"""Whether a recipe can be followed, asked of the trainer in a process of its own."""

from __future__ import annotations

import asyncio
import logging
from importlib.util import find_spec
from pathlib import Path

from loraplex_adapters.errors import FieldViolation, InvalidRequestError, StorageError
from loraplex_server.errors import TrainerMissingError
from loraplex_server.training.messages import Checked, CheckOrder, LibraryMissing
from loraplex_server.training.process import CHILD_MODULE, TrainerProcess

_TIMEOUT_S = 60.0
_MAX_VIOLATIONS = 32

log = logging.getLogger(__name__)


class RecipeChecker:
    """Owned by the event loop; at most two recipes are checked at once."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(2)

    async def check(self, order: CheckOrder, work_folder: Path) -> Checked:
        """Raises InvalidRequestError with every wrong field, TrainerMissingError, StorageError."""
        if find_spec(CHILD_MODULE.partition(".")[0]) is None:  # looks, and imports nothing
            answer: Checked | LibraryMissing = LibraryMissing(CHILD_MODULE)
        else:
            async with self._places:
                answer = await self._ask(order, work_folder)
        if isinstance(answer, LibraryMissing):
            raise TrainerMissingError(
                f"the server cannot train: its installation lacks '{answer.library}'; install the extra 'trainer' there"
            )
        if answer.violations:
            violations = [
                FieldViolation(f"recipe.{entry.field}" if entry.field else "recipe", entry.description)
                for entry in answer.violations[:_MAX_VIOLATIONS]
            ]
            raise InvalidRequestError(violations)
        return answer

    async def _ask(self, order: CheckOrder, work_folder: Path) -> Checked | LibraryMissing:
        process = await TrainerProcess.start(work_folder, 1)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await process.send(order)
                async for report in process.reports():
                    if isinstance(report, Checked | LibraryMissing):
                        return report
        except TimeoutError:
            pass
        finally:
            process.kill()
            await process.wait()
        log.error("the process that checks recipes did not answer")
        raise StorageError("the server could not check the recipe in time; try again later")
