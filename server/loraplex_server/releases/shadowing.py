"""Versions that answer unseen: their answers are compared with the served ones and discarded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from loraplex_adapters.errors import LoraplexError
from loraplex_adapters.names import AdapterName
from loraplex_server.engine.messages import AddSequence
from loraplex_server.engine_client import EngineClient
from loraplex_server.metrics import Metrics
from loraplex_server.releases.directory import Resolved
from loraplex_server.releases.packages import ServerPackages
from loraplex_server.releases.unseen_run import run_unseen

log = logging.getLogger(__name__)

_MAX_AT_ONCE = 8
_MAX_ADAPTERS_COUNTED = 4096
_TIMEOUT_S = 300.0


@dataclass(slots=True)
class ShadowCounts:
    """Of one adapter since the server started."""

    compared: int = 0
    equal: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class ServedTokens:
    """The tokens of a completion."""

    token_ids: list[int]
    is_cut: bool  # by a stop string, which the engine does not know: it would have gone on

    def equals(self, shadow: list[int]) -> bool:
        """Whether a shadow would have been served alike."""
        return shadow[: len(self.token_ids)] == self.token_ids if self.is_cut else shadow == self.token_ids


class ShadowRun:
    """The shadow of one request."""

    def __init__(self) -> None:
        self.served: asyncio.Future[ServedTokens] = asyncio.get_running_loop().create_future()

    def served_with(self, tokens: ServedTokens) -> None:
        """What the caller got."""
        if not self.served.done():
            self.served.set_result(tokens)

    def not_served(self) -> None:
        """The request did not end well, so there is nothing to compare with. No effect after `served_with`."""
        self.served.cancel()


ShadowStarter = Callable[[Resolved, AddSequence], ShadowRun | None]
"""Begins the shadow of a submitted request, if it has one."""


def no_shadows(resolved: Resolved, command: AddSequence) -> ShadowRun | None:
    """A server without shadows."""
    return None


class Shadows:
    """Owned by the event loop. Callers never wait for a shadow, and a busy server runs none."""

    def __init__(
        self, engine: EngineClient, packages: ServerPackages, metrics: Metrics, is_busy: Callable[[], bool]
    ) -> None:
        self._engine = engine
        self._packages = packages
        self._metrics = metrics
        self._is_busy = is_busy
        self._counts: dict[AdapterName, ShadowCounts] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def counts(self, name: AdapterName) -> ShadowCounts:
        """Zeros for an adapter without shadows."""
        return self._counts.get(name, ShadowCounts())

    def begin(self, resolved: Resolved, command: AddSequence) -> ShadowRun | None:
        """Let the shadow of a request answer the same `command`; None if it has none or the server is busy."""
        if resolved.shadow is None:
            return None
        name = resolved.adapter.name
        if len(self._tasks) >= _MAX_AT_ONCE or self._is_busy():
            self._count(name, "dropped")
            return None
        run = ShadowRun()
        task = asyncio.get_running_loop().create_task(self._run(name, resolved.shadow.digest, command, run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return run

    async def close(self) -> None:
        """End what runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, name: AdapterName, digest: str, command: AddSequence, run: ShadowRun) -> None:
        outcome = "dropped"
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                with self._packages.lease(digest):
                    await self._packages.ensure(digest)
                    tokens = await self._tokens(digest, command)
                outcome = "equal" if (await run.served).equals(tokens) else "different"
        except (LoraplexError, TimeoutError) as error:
            log.warning(
                "a shadow failed", extra={"adapter": str(name), "digest": digest[:12], "cause": str(error)}
            )
        except asyncio.CancelledError:
            if not run.served.cancelled():
                raise
        finally:
            self._count(name, outcome)

    async def _tokens(self, digest: str, command: AddSequence) -> list[int]:
        """Raises what the engine says of the sequence."""
        outputs = await run_unseen(self._engine, msgspec.structs.replace(command, adapter_digest=digest))
        return [token_id for output in outputs for token_id in output.token_ids]

    def _count(self, name: AdapterName, outcome: str) -> None:
        self._metrics.shadow_ended(str(name), outcome)
        if name not in self._counts and len(self._counts) >= _MAX_ADAPTERS_COUNTED:
            del self._counts[next(iter(self._counts))]
        counts = self._counts.setdefault(name, ShadowCounts())
        if outcome == "dropped":
            counts.dropped += 1
        else:
            counts.compared += 1
            counts.equal += outcome == "equal"
