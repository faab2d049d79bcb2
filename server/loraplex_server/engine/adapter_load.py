"""One adapter on its way into a slot: what is wanted of it, and how far it has come."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from loraplex_adapters.errors import AdapterUnavailableError, LoraplexError
from loraplex_server.engine.adapter_copies import AdapterCopy
from loraplex_server.engine.adapter_loader import HostWeights, Reading
from loraplex_server.errors import SequenceFailedError


class Stage(enum.Enum):
    """Follows from what a load holds."""

    QUEUED = enum.auto()  # to be read
    READING = enum.auto()  # and has no slot yet
    READ = enum.auto()  # held in the host cache, waits for a slot
    COPYING = enum.auto()  # maybe still being read


@dataclass(slots=True, eq=False)
class AdapterLoad:
    """Made, changed and ended by `AdapterResidency`."""

    digest: str
    is_awaited: bool = False  # by a sequence
    is_warming: bool = False  # into a slot for nobody yet
    is_forgotten: bool = False
    reading: Reading | None = None  # while it is read; holds the weights meanwhile
    weights: HostWeights | None = None  # held in the host cache, by the load once it is read
    copy: AdapterCopy | None = None  # of these weights
    num_elements: int | None = None  # once known
    failure: LoraplexError | None = None  # sequences are told when they next ask

    @property
    def stage(self) -> Stage:
        if self.copy is not None:
            return Stage.COPYING
        if self.reading is not None:
            return Stage.READING
        return Stage.QUEUED if self.weights is None else Stage.READ

    @property
    def is_under_way(self) -> bool:
        """Whether it goes on by itself: being read, it ends in the host cache; being copied, in the slot."""
        return self.reading is not None or self.copy is not None

    @property
    def waits_for_room(self) -> bool:
        """Whether nothing but a slot is missing; what no sequence waits for may have left the host cache meanwhile."""
        if self.failure is not None or self.num_elements is None:
            return False
        return self.stage is Stage.READ or (self.stage is Stage.QUEUED and not self.is_awaited)

    @property
    def can_be_published(self) -> bool:
        """Whether all of it was found sound and lies in its extent."""
        return self.reading is None and self.copy is not None and self.copy.is_over


def failure_of(error: BaseException) -> LoraplexError:
    """What sequences are told of an adapter that was not read.

    A package is called unavailable, and its version failed, only where the error is about the package: want of memory
    may be over with the next request, and a bug of ours with the next release.
    """
    failure: LoraplexError
    if isinstance(error, LoraplexError):
        failure = AdapterUnavailableError(f"the adapter's stored package cannot be used: {error}")
    elif isinstance(error, OSError):
        failure = AdapterUnavailableError("the adapter's stored package cannot be read; register it again")
    else:
        failure = SequenceFailedError("the engine could not load the adapter; its log says why")
    failure.__cause__ = error
    return failure
