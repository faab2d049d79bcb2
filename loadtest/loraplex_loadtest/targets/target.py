"""What a generator needs of the server that it asks, whatever protocol that speaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from loraplex_loadtest.scenario import Sampling


class TargetKind(StrEnum):
    """Protocols."""

    LORAPLEX = "loraplex"
    VLLM = "vllm"  # vllm.Inference over gRPC
    OPENAI = "openai"  # HTTP with server-sent events


@dataclass(frozen=True, slots=True)
class TargetAddress:
    """Where and how to ask. Picklable: generators are processes of their own."""

    kind: TargetKind
    address: str  # host:port, or the URL in front of /v1
    metrics_url: str = ""  # empty: none is scraped
    model: str = ""  # what OpenAI-compatible and vLLM servers call the base
    headers: Mapping[str, str] = field(default_factory=dict)  # of each request; never printed
    continuous_usage: bool = False  # OpenAI: ask for a token count in every chunk


@dataclass(frozen=True, slots=True)
class Question:
    """A request before it is put into a protocol's words."""

    adapter: str  # empty: the base
    text: str
    is_chat: bool
    max_tokens: int
    ignore_eos: bool
    sampling: Sampling
    request_id: str


class Sink(Protocol):
    """Told what happens to a request, as it happens."""

    def tokens(self, count: int) -> bool:
        """A message with `count` tokens came. False: the request shall be given up."""

    async def pause(self) -> None:
        """Between two messages, where the request reads slowly."""

    def answered_by(self, digest: str) -> None:
        """Which version answers."""

    def counted(self, prompt_tokens: int, completion_tokens: int) -> None:
        """The server's own count."""

    def completed(self) -> None:
        """It ended well, and the server counted nothing."""

    def server_times(self, queue_s: float, adapter_load_s: float) -> None:
        """Where the time went on the server."""

    def failed(self, status: str, reason: str, retry_after_s: float | None = None) -> None:
        """It ended with an error; `status` in gRPC's words. None: the server does not say when it may be sent again."""


class Connection(Protocol):
    """One connection; belongs to the event loop that made it."""

    async def open(self) -> None:
        """Connect now rather than with the first request; returns too where nothing answers."""

    def prepare(self, question: Question) -> Any:
        """The request as it will be sent; done ahead, so that sending costs little."""

    async def ask(self, prepared: Any, deadline_s: float, sink: Sink) -> None:
        """Send it and tell the sink; returns when the stream is over, however it ends. Raises no error of the call."""

    async def close(self) -> None:
        """Ends it; running streams are cut."""


class Inspector(Protocol):
    """What is asked of a target beside the load."""

    async def describe(self) -> dict[str, Any]:
        """What the server says of itself; empty where it says nothing. Raises TargetUnreadyError."""

    async def adapters(self) -> list[str]:
        """Names that requests may use."""

    async def overhead_tokens(self, is_chat: bool, text: str, num_tokens: int) -> int:
        """Tokens that the server's template adds to a text of `num_tokens`; 0 where it does not tell."""

    async def close(self) -> None:
        """Ends it."""
