"""One caller of a server that is killed under it again and again: it writes, asks, and knows what it was told."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from benchmarks.kills_stage import SHORT, KillFailure, Stage
from benchmarks.kills_writes import Write, draw
from loraplex_client import Adapter, LoraplexClient, UnavailableError
from tests.integration.live_server import LiveServer
from tests.integration.streams import PROMPT
from tests.support.release_model import ModelAdapter, ModelRegistry

_ASKED_SHARE = 0.4  # of the writes that are followed by a request

State = dict[str, Any]
"""What can be seen of an adapter."""


@dataclass
class Counts:
    """What one writer saw, over all lives of the server."""

    acknowledged: Counter[str] = field(default_factory=Counter)  # writes by kind
    under_way: Counter[str] = field(default_factory=Counter)  # at a kill, by kind
    took_effect: int = 0  # of those under way
    resumed: int = 0  # uploads that went on from bytes of an earlier life
    resumed_bytes: int = 0
    answers: int = 0


class Aim:
    """The kind of change that a kill is to come into. Set by who kills, heeded by all writers."""

    def __init__(self) -> None:
        self.kind = ""  # none yet
        self.is_sent = threading.Event()

    def sending(self, write: Write) -> None:
        if write.kind == self.kind:
            self.is_sent.set()


class Writer:
    """Owns a tenant: nobody else changes its adapters, so that what it was told says what must be there."""

    def __init__(self, stage: Stage, tenant: str, seed: str) -> None:
        self.tenant = tenant
        self.counts = Counts()
        self.model = ModelRegistry()  # all that was acknowledged, or seen
        self.pending: Write | None = None  # sent, and never answered
        self.has_taken_effect = False  # the pending one, as a restart has shown
        self.failure: Exception | None = None
        self._stage = stage
        self._choice = random.Random(seed)

    def possible(self) -> list[ModelRegistry]:
        """What the registry may hold after a kill; the first is that without the pending write."""
        if self.pending is None or self.has_taken_effect:
            return [self.model]
        return [self.model, self.pending.after(self.model)]

    def observe(self, found: dict[str, Adapter]) -> None:
        """A restarted server has these adapters of the tenant. Raises KillFailure if others must be."""
        seen = {name: seen_state(adapter) for name, adapter in found.items()}
        digests = self._stage.digests
        possible = self.possible()
        matching = [
            model
            for model in possible
            if seen == {name: model_state(adapter, digests) for name, adapter in model.adapters.items()}
        ]
        if not matching:
            raise KillFailure(f"tenant {self.tenant}: {seen} is neither state of {possible}, {self.pending}")
        if matching[0] is not self.model:
            self.model = matching[0]
            self.has_taken_effect = True
            self.counts.took_effect += 1

    def run(self, server: LiveServer, acknowledged: Callable[[], None], aim: Aim) -> None:
        """Write until the server is gone, without asking once there is an aim. Any other failure ends it too, and is
        kept."""
        try:
            with (
                server.client(timeout_s=self._stage.timeout_s) as client,
                grpc.insecure_channel(server.target, [("grpc.enable_retries", 0)]) as channel,
            ):
                while True:
                    if self.pending is not None:
                        aim.sending(self.pending)
                        self.finish_pending(client, channel)
                        acknowledged()
                    if self._choice.random() < _ASKED_SHARE and not aim.kind:
                        self._ask_one(client)
                    num_packages = len(self._stage.folders)
                    self.pending = draw(self._choice, self.tenant, self.model, num_packages, aim.kind)
        except UnavailableError:
            return
        except Exception as error:
            self.failure = error

    def finish_pending(self, client: LoraplexClient, channel: grpc.Channel) -> None:
        """Send what was never answered, until it is. Raises LoraplexApiError."""
        if self.pending is None:
            return
        self.pending.send(client, channel, self._stage)
        if not self.has_taken_effect:
            self.pending.apply(self.model)
        self.counts.acknowledged[self.pending.kind] += 1
        self.pending, self.has_taken_effect = None, False

    def ask_all(self, client: LoraplexClient) -> None:
        """Every name by itself, by its aliases and by its digests answers what it must. Raises KillFailure."""
        for name, adapter in self.model.adapters.items():
            for target in (None, *adapter.aliases, *adapter.versions):
                self._ask(client, name, adapter, target)

    def _ask_one(self, client: LoraplexClient) -> None:
        if self.model.adapters:
            name = self._choice.choice(sorted(self.model.adapters))
            self._ask(client, name, self.model.adapters[name], None)

    def _ask(
        self, client: LoraplexClient, name: str, adapter: ModelAdapter, target: str | int | None
    ) -> None:
        digests = self._stage.digests
        suffix = "" if target is None else f"@{target if isinstance(target, str) else digests[target]}"
        key = str(self._choice.random())
        answer = client.generate(PROMPT, adapter=name + suffix, routing_key=key, **SHORT)
        package = digests.index(answer.adapter_digest)
        if package not in adapter.served(target) or answer.token_ids != self._stage.answers[package]:
            raise KillFailure(f"{name}{suffix} was answered by package {package}: {answer.token_ids}")
        self.counts.answers += 1


def seen_state(adapter: Adapter) -> State:
    """Of what a server lists."""
    return {
        "versions": [(version.digest, version.state.value) for version in adapter.versions],
        "aliases": dict(adapter.aliases),
        "traffic": [(share.target, share.weight) for share in adapter.traffic],
        "shadow": adapter.shadow and adapter.shadow.target,
        "pinned": adapter.pinned,
        "labels": dict(adapter.labels),
    }


def model_state(adapter: ModelAdapter, digests: list[str]) -> State:
    """The same of what must be there."""

    def written(target: str | int) -> str:
        """As it is listed."""
        return target if isinstance(target, str) else digests[target]

    return {
        "versions": [
            (digests[package], "deprecated" if package in adapter.deprecated else "ready")
            for package in adapter.versions
        ],
        "aliases": {alias: digests[package] for alias, package in adapter.aliases.items()},
        "traffic": [(written(target), weight) for target, weight in adapter.traffic],
        "shadow": None if adapter.shadow is None else written(adapter.shadow),
        "pinned": adapter.is_pinned,
        "labels": adapter.labels,
    }
