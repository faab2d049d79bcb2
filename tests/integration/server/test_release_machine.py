"""Any course of registrations, releases, deletions, evictions, restarts and requests, against a plain model.

Every answer comes from exactly one digest, the right one; what was acknowledged survives a kill; nothing leaks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from loraplex_client import LoraplexApiError, LoraplexClient
from tests.integration.conftest import NewAdapter
from tests.integration.live_server import LiveServer, await_idle, eventually, running_server
from tests.integration.streams import PROMPT
from tests.support.release_model import ModelRegistry, Refused

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_PACKAGES = 5
SLOTS = 3  # fewer than packages, so that requests evict
SHORT: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "max_tokens": 6, "include_token_ids": True}
NAMES = st.sampled_from(["one", "team/two"])
ALIASES = st.sampled_from(["stable", "canary"])
PACKAGES = st.integers(0, NUM_PACKAGES - 1)
TARGETS: st.SearchStrategy[str | int | None] = st.one_of(
    st.none(), st.sampled_from(["stable", "canary"]), PACKAGES
)
MAX_RESTARTS = 2  # of one course: each takes seconds


class Stage:
    """The server that all courses use, one after another, and what each package answers."""

    def __init__(self, start: Callable[[], LiveServer], folders: list[Path]) -> None:
        self._start = start
        self.folders = folders
        self.server = start()
        self.client = self.server.client(timeout_s=120)
        self.digests: list[str] = []
        self.answers: list[tuple[int, ...]] = []
        for number, folder in enumerate(folders):
            registered = self.client.adapters.upload(f"reference/p{number}", folder)
            answer = self.client.generate(PROMPT, adapter=f"reference/p{number}", **SHORT)
            self.digests.append(registered.digest)
            self.answers.append(answer.token_ids)
        assert len(set(self.answers)) == NUM_PACKAGES, (
            "two packages answer alike; no test could tell them apart"
        )

    def restart(self, *, kill: bool) -> None:
        """Another server process on the same data."""
        self.client.close()
        if kill:
            self.server.kill()
        else:
            self.server.stop()
        self.server = self._start()
        self.client = self.server.client(timeout_s=120)


class Releases(RuleBasedStateMachine):
    """One course. Its adapters are gone at the end."""

    stage: Stage

    def __init__(self) -> None:
        super().__init__()
        self.model = ModelRegistry()
        self.restarts = 0

    @property
    def client(self) -> LoraplexClient:
        return self.stage.client

    @initialize(name=NAMES, package=PACKAGES)
    def first(self, name: str, package: int) -> None:
        self.register(name, package, "refuse", "")

    @rule(
        name=NAMES,
        package=PACKAGES,
        how=st.sampled_from(["refuse", "add_version", "promote"]),
        alias=st.sampled_from(["", "canary"]),
    )
    def register(self, name: str, package: int, how: str, alias: str) -> None:
        self._both(
            lambda: self.model.register(name, package, how, alias),
            lambda: self.client.adapters.upload(
                name, self.stage.folders[package], on_existing=how, alias=alias
            ),
        )

    @rule(name=NAMES, package=PACKAGES, alias=ALIASES)
    def promote(self, name: str, package: int, alias: str) -> None:
        self._both(
            lambda: self.model.promote(name, package, alias),
            lambda: self.client.adapters.promote(name, self.stage.digests[package], alias=alias),
        )

    @rule(name=NAMES, alias=ALIASES)
    def rollback(self, name: str, alias: str) -> None:
        self._both(
            lambda: self.model.rollback(name, alias), lambda: self.client.adapters.rollback(name, alias=alias)
        )

    @rule(name=NAMES, package=PACKAGES, weight=st.integers(1, 5))
    def split(self, name: str, package: int, weight: int) -> None:
        self._both(
            lambda: self.model.split(name, [("stable", 3), (package, weight)]),
            lambda: self.client.adapters.split(name, {"stable": 3, self.stage.digests[package]: weight}),
        )

    @rule(name=NAMES)
    def end_split(self, name: str) -> None:
        self._both(lambda: self.model.split(name, []), lambda: self.client.adapters.split(name, {}))

    @rule(name=NAMES, package=PACKAGES, undo=st.booleans())
    def deprecate(self, name: str, package: int, undo: bool) -> None:
        self._both(
            lambda: self.model.deprecate(name, package, undo),
            lambda: self.client.adapters.deprecate(name, self.stage.digests[package], undo=undo),
        )

    @rule(name=NAMES, package=PACKAGES)
    def delete_version(self, name: str, package: int) -> None:
        self._both(
            lambda: self.model.delete_version(name, package),
            lambda: self.client.adapters.delete_version(name, self.stage.digests[package]),
        )

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        self._both(lambda: self.model.delete(name), lambda: self.client.adapters.delete(name))

    @rule(name=NAMES, is_pinned=st.booleans())
    def pin(self, name: str, is_pinned: bool) -> None:
        if name in self.model.adapters:
            if is_pinned and any(adapter.is_pinned for adapter in self.model.adapters.values()):
                return  # two pinned splits may be more than the slots leave
            self.model.adapters[name].is_pinned = is_pinned
            (self.client.adapters.pin if is_pinned else self.client.adapters.unpin)(name)

    @rule(
        name=NAMES,
        asked=TARGETS,
        key=st.text(max_size=3),
    )
    def generate(self, name: str, asked: str | int | None, key: str) -> None:
        """The right digest, and that digest's tokens."""
        suffix = "" if asked is None else f"@{asked if isinstance(asked, str) else self.stage.digests[asked]}"
        allowed: set[int] = set()
        answers = []

        def model() -> None:
            allowed.update(self.model.get(name).served(asked))

        self._both(
            model,
            lambda: answers.append(
                self.client.generate(PROMPT, adapter=name + suffix, routing_key=key, **SHORT)
            ),
        )
        for answer in answers:
            package = self.stage.digests.index(answer.adapter_digest)
            assert package in allowed
            assert answer.token_ids == self.stage.answers[package]

    @rule()
    def evict(self) -> None:
        """More adapters than slots, so that whatever was resident was not for long."""
        for number in range(NUM_PACKAGES):
            answer = self.client.generate(PROMPT, adapter=f"reference/p{number}", **SHORT)
            assert answer.token_ids == self.stage.answers[number]

    @precondition(lambda self: self.restarts < MAX_RESTARTS)
    @rule(kill=st.booleans())
    def restart(self, kill: bool) -> None:
        self.restarts += 1
        self.stage.restart(kill=kill)

    def teardown(self) -> None:
        """The registry says what the model says, and nothing is held any more."""
        found = {adapter.name: adapter for adapter in self.client.adapters.list()}
        digests = self.stage.digests
        mine = {name: adapter for name, adapter in found.items() if not name.startswith("reference/")}
        assert set(mine) == set(self.model.adapters)
        for name, expected in self.model.adapters.items():
            assert [v.digest for v in mine[name].versions] == [digests[each] for each in expected.versions]
            assert mine[name].aliases == {alias: digests[each] for alias, each in expected.aliases.items()}
            assert len(mine[name].traffic) == len(expected.traffic)
            assert mine[name].pinned == expected.is_pinned
            self.client.adapters.delete(name)
        await_idle(self.client)
        eventually(lambda: stored(self.stage.server) == set(digests))

    def _both(self, model: Callable[[], None], server: Callable[[], object]) -> None:
        """The server does what the model does, or refuses for the model's reason."""
        reason = ""
        try:
            model()
        except Refused as refused:
            reason = refused.args[0]
        if not reason:
            server()
            return
        with pytest.raises(LoraplexApiError) as caught:
            server()
        assert caught.value.reason == reason


def stored(server: LiveServer) -> set[str]:
    """Digests in the package store."""
    return {name for name in os.listdir(server.data_dir / "adapters") if len(name) == 64}


@pytest.fixture
def stage(tiny_base: Path, packages: Path, new_adapter: NewAdapter, tmp_path: Path) -> Iterator[Stage]:
    folders = [new_adapter(f"released{number}", r=2 + number) for number in range(NUM_PACKAGES)]
    with ExitStack() as running:

        def start() -> LiveServer:
            running.close()
            return running.enter_context(
                running_server(tiny_base, tmp_path, adapter_slots=SLOTS, adapter_roots=packages)
            )

        made = Stage(start, folders)
        yield made
        made.client.close()


def test_every_answer_comes_from_the_digest_that_the_releases_say(stage: Stage) -> None:
    Releases.stage = stage
    run_state_machine_as_test(
        Releases,
        settings=settings(
            max_examples=15,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )
