"""Any course of registrations, releases, deletions, evictions, restarts and requests, against a plain model.

Every answer comes from exactly one digest, the right one, also where the releases change under it; what was
acknowledged survives a kill; no lease, slot, block, byte or file is left over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from loraplex_client import LoraplexApiError, LoraplexClient, Tier
from tests.integration.conftest import NewAdapter
from tests.integration.live_server import LiveServer, eventually, running_server
from tests.integration.server.release_stage import (
    ADAPTERS,
    LONG_TOKENS,
    NUM_KEPT,
    NUM_PACKAGES,
    RANKS,
    SETTINGS,
    SHORT,
    Stage,
)
from tests.integration.server.running_stream import RunningStream
from tests.integration.streams import PROMPT
from tests.support.release_model import ModelAnswers, ModelRegistry, Refused

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NAMES = st.sampled_from(ADAPTERS)
ALIASES = st.sampled_from(["stable", "canary"])
PACKAGES = st.integers(0, NUM_PACKAGES - 1)
VERSIONS: st.SearchStrategy[str | int] = st.one_of(st.just("canary"), PACKAGES)
TARGETS: st.SearchStrategy[str | int | None] = st.one_of(
    st.none(), st.sampled_from(["stable", "canary"]), PACKAGES
)
CHANGES = st.sampled_from(
    ["add_version", "promote", "rollback", "split", "delete_version", "delete", "evict", "pin", "unpin"]
)
MAX_RESTARTS = 1  # of one course: each takes seconds


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

    @initialize(first=PACKAGES, second=PACKAGES, other=PACKAGES)
    def begin(self, first: int, second: int, other: int) -> None:
        """Both names are there, and one has something to change to, which answers unseen."""
        self.register("one", first, "refuse", "")
        self.register("one", second, "add_version", "canary")
        self.register("team/two", other, "refuse", "")
        self.shadow("one", "canary")

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

    @rule(name=NAMES, version=VERSIONS, alias=ALIASES)
    def promote(self, name: str, version: str | int, alias: str) -> None:
        self._both(
            lambda: self.model.promote(name, version, alias),
            lambda: self.client.adapters.promote(name, self._wire_target(version), alias=alias),
        )

    @rule(name=NAMES, alias=ALIASES)
    def rollback(self, name: str, alias: str) -> None:
        self._both(
            lambda: self.model.rollback(name, alias), lambda: self.client.adapters.rollback(name, alias=alias)
        )

    @rule(name=NAMES, version=VERSIONS, weight=st.integers(1, 5))
    def split(self, name: str, version: str | int, weight: int) -> None:
        self._both(
            lambda: self.model.split(name, [("stable", 3), (version, weight)]),
            lambda: self.client.adapters.split(name, {"stable": 3, self._wire_target(version): weight}),
        )

    @rule(name=NAMES)
    def end_split(self, name: str) -> None:
        self._both(lambda: self.model.split(name, []), lambda: self.client.adapters.split(name, {}))

    @rule(name=NAMES, asked=TARGETS)
    def shadow(self, name: str, asked: str | int | None) -> None:
        """None ends it."""
        self._both(
            lambda: self.model.set_shadow(name, asked),
            lambda: self.client.adapters.set_shadow(name, self._wire_target(asked)),
        )

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
        others = (adapter for each, adapter in self.model.adapters.items() if each != name)
        if is_pinned and any(adapter.is_pinned for adapter in others):
            return  # two pinned splits may be more than the slots leave
        self._both(
            lambda: self.model.pin(name, is_pinned),
            lambda: (self.client.adapters.pin if is_pinned else self.client.adapters.unpin)(name),
        )

    @rule(name=NAMES, asked=TARGETS)
    def warm(self, name: str, asked: str | int | None) -> None:
        """What is warmed is in its slot when the call returns; of a split, one may have gone for the other."""
        eventually(lambda: not self.stage.server.metric("loraplex_package_leases"))  # nor any shadow
        warmed: list[Tier] = []
        self._both(
            lambda: self.model.get(name).served(asked),
            lambda: warmed.extend(
                version.residency.tier for version in self.client.adapters.warm(self._asked(name, asked))
            ),
        )
        assert not warmed or Tier.SLOT in warmed

    @rule(name=NAMES, asked=TARGETS, key=st.text(max_size=3))
    def generate(self, name: str, asked: str | int | None, key: str) -> None:
        """The right digest, and that digest's tokens."""
        expected: list[ModelAnswers] = []
        answers = []
        self._both(
            lambda: expected.append(self.model.get(name).answers(asked)),
            lambda: answers.append(
                self.client.generate(PROMPT, adapter=self._asked(name, asked), routing_key=key, **SHORT)
            ),
        )
        for answer in answers:
            package = self._answered(name, expected[0], answer.adapter_digest)
            assert answer.token_ids == self.stage.answers[package][: SHORT["max_tokens"]]

    @rule(
        asked=st.lists(st.tuples(NAMES, st.sampled_from([None, "stable", "canary"])), min_size=1, max_size=3),
        changes=st.lists(st.tuples(CHANGES, NAMES, PACKAGES), min_size=1, max_size=2),
    )
    def change_under_streams(
        self, asked: list[tuple[str, str | None]], changes: list[tuple[str, str, int]]
    ) -> None:
        """What runs finishes on the version it began with; who comes after a change gets what holds then."""
        running: list[tuple[int, RunningStream]] = []
        for name, target in asked:
            try:
                expected = self.model.get(name).answers(target)
            except Refused:
                continue
            stream = self.stage.stream(self._asked(name, target))
            stream.await_begun()
            running.append((self._answered(name, expected, stream.digest), stream))
        for change, name, package in changes:
            self._change(change, name, package)
            self.generate(name, None, "")
        for package, stream in running:
            stream.end()
            assert tuple(stream.token_ids) == self.stage.answers[package][: len(stream.token_ids)]
            assert not stream.is_whole or len(stream.token_ids) == LONG_TOKENS

    @rule()
    def evict(self) -> None:
        """More adapters than slots, so that whatever was resident was not for long."""
        for number in range(NUM_KEPT):
            answer = self.client.generate(PROMPT, adapter=f"reference/p{number}", **SHORT)
            assert answer.token_ids == self.stage.answers[number][: SHORT["max_tokens"]]

    @precondition(lambda self: self.restarts < MAX_RESTARTS)
    @rule(kill=st.booleans())
    def restart(self, kill: bool) -> None:
        self.restarts += 1
        self.stage.check_accounts(self.model)
        self.stage.restart(kill=kill)

    def teardown(self) -> None:
        """The registry says what the model says, and nothing is held any more."""
        self.stage.check_accounts(self.model)
        found = {adapter.name: adapter for adapter in self.client.adapters.list()}
        digests = self.stage.digests
        mine = {name: adapter for name, adapter in found.items() if not name.startswith("reference/")}
        assert set(mine) == set(self.model.adapters)
        for name, expected in self.model.adapters.items():
            assert [v.digest for v in mine[name].versions] == [digests[each] for each in expected.versions]
            assert mine[name].aliases == {alias: digests[each] for alias, each in expected.aliases.items()}
            assert len(mine[name].traffic) == len(expected.traffic)
            assert mine[name].pinned == expected.is_pinned
            shadow = mine[name].shadow
            assert (shadow.target if shadow else "") == self._wire_target(expected.shadow)
            if shadow is not None:
                assert shadow.compared + shadow.dropped == self.stage.num_shadowed[name]
                assert shadow.equal == 0
            self.client.adapters.delete(name)
        self.stage.check_accounts(ModelRegistry())

    def _change(self, change: str, name: str, package: int) -> None:
        """One of CHANGES."""
        match change:
            case "add_version":
                self.register(name, package, "add_version", "")
            case "promote":
                self.register(name, package, "promote", "")
            case "rollback":
                self.rollback(name, "stable")
            case "split":
                self.split(name, "canary", 3)
            case "delete_version":
                self.delete_version(name, package)
            case "delete":
                self.delete(name)
            case "evict":
                self.evict()
            case _:
                self.pin(name, change == "pin")

    def _answered(self, name: str, expected: ModelAnswers, digest: str) -> int:
        """The package that answers."""
        package = self.stage.digests.index(digest)
        assert package in expected.allowed
        self.stage.num_shadowed[name] += expected.is_shadowed(package)
        return package

    def _wire_target(self, target: str | int | None) -> str:
        return self.stage.digests[target] if isinstance(target, int) else target or ""

    def _asked(self, name: str, target: str | int | None) -> str:
        return name if target is None else f"{name}@{self._wire_target(target)}"

    def _both(self, model: Callable[[], object], server: Callable[[], object]) -> None:
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


@pytest.fixture
def stage(tiny_base: Path, packages: Path, new_adapter: NewAdapter, tmp_path: Path) -> Iterator[Stage]:
    folders = [new_adapter(f"released{rank}", r=rank, lora_alpha=2 * rank) for rank in RANKS]
    with ExitStack() as running:

        def start() -> LiveServer:
            running.close()
            return running.enter_context(
                running_server(tiny_base, tmp_path, adapter_roots=packages, **SETTINGS)
            )

        made = Stage(start, folders)
        yield made
        made.client.close()


def test_every_answer_comes_from_the_digest_that_the_releases_say(stage: Stage) -> None:
    Releases.stage = stage
    run_state_machine_as_test(
        Releases,
        settings=settings(
            max_examples=14,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
            report_multiple_bugs=False,
            phases=(Phase.generate,),  # a course takes seconds: shrinking one takes minutes
        ),
    )
