"""What the servicers work with once the base model is resident."""

from __future__ import annotations

from dataclasses import dataclass

from loraplex_server.engine.messages import EngineReady
from loraplex_server.errors import EngineUnavailableError
from loraplex_server.generation import GenerationService
from loraplex_server.releases.service import Releases
from loraplex_server.tokenizer import BaseTokenizer
from loraplex_server.training.service import TrainingJobs


@dataclass(frozen=True, slots=True)
class ServingParts:
    """Built when the first engine is ready."""

    generation: GenerationService
    tokenizer: BaseTokenizer
    releases: Releases
    ready: EngineReady
    base_id: str
    training: TrainingJobs | None = None  # None: switched off


class Serving:
    """Empty while the base model loads, so that the port can listen from the start."""

    def __init__(self) -> None:
        self._parts: ServingParts | None = None

    @property
    def has_begun(self) -> bool:
        return self._parts is not None

    def begin(self, parts: ServingParts) -> None:
        """The server can answer from now on."""
        self._parts = parts

    def parts(self) -> ServingParts:
        """Raises EngineUnavailableError while the base model loads."""
        if self._parts is None:
            raise EngineUnavailableError("the base model is still loading; try again in a moment")
        return self._parts
