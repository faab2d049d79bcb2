"""The registry against a model of plain dicts: whatever is called in whatever order, both say the same."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from loraplex_adapters import errors
from loraplex_adapters.names import AdapterName
from loraplex_adapters.registry import AdapterRegistry, Once
from loraplex_adapters.releases import Adapter, OnExisting, Shadow, TrafficShare
from tests.unit.adapters.release_case import version

MAX_PINNED = 2
ALIASES = st.sampled_from(["stable", "canary", "next"])
DIGESTS = st.sampled_from([letter * 64 for letter in "abcd"])
TARGETS = st.one_of(ALIASES, DIGESTS.map(lambda digest: digest[:12]), DIGESTS)
NAMES = st.sampled_from([AdapterName("default", "shop"), AdapterName("t", "shop"), AdapterName("t", "faq")])


@dataclass
class Model:
    """One adapter as plain data."""

    states: dict[str, str]  # digest -> state, oldest version first
    aliases: dict[str, str]
    past: dict[str, list[str]] = field(default_factory=dict)
    traffic: list[tuple[str, int]] = field(default_factory=list)
    shadow: tuple[str, int] | None = None
    is_pinned: bool = False
    labels: dict[str, str] = field(default_factory=dict)

    def digest(self, target: str) -> str | None:
        """What a target names, if anything."""
        if target in self.aliases:
            return self.aliases[target]
        found = [digest for digest in self.states if digest.startswith(target) and len(target) >= 12]
        return found[0] if found else None

    def point(self, alias: str, digest: str) -> None:
        """Move an alias and remember where it was."""
        before = self.aliases.get(alias)
        if before not in (None, digest):
            self.past.setdefault(alias, []).append(str(before))
        self.aliases[alias] = digest
        if alias == "stable":
            self.traffic = []

    def routed(self) -> set[str]:
        """Targets of split and shadow."""
        return {target for target, _ in self.traffic} | ({self.shadow[0]} if self.shadow else set())

    def shadowing(self) -> set[str]:
        """The digest that answers unseen, if any does."""
        return {str(self.digest(self.shadow[0]))} if self.shadow else set()

    def served(self) -> set[str]:
        """Digests that the bare name may serve."""
        return {str(self.digest(target)) for target, _ in self.traffic} or {self.aliases["stable"]}


def as_model(adapter: Adapter, past: dict[str, list[str]]) -> Model:
    """What the registry says, in the model's form; it does not say what aliases pointed at before."""
    return Model(
        states={one.digest: one.state.value for one in reversed(adapter.versions)},
        aliases=dict(adapter.aliases),
        past=past,
        traffic=[(share.target, share.weight) for share in adapter.traffic],
        shadow=(adapter.shadow.target, adapter.shadow.percent) if adapter.shadow else None,
        is_pinned=adapter.is_pinned,
        labels=dict(adapter.labels),
    )


class RegistryMachine(RuleBasedStateMachine):
    """Calls of everything that changes the registry; the model says first what must come of each."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.url = f"sqlite:///{Path(self.folder.name) / 'registry.db'}"
        self.registry = AdapterRegistry(self.url)
        self.models: dict[AdapterName, Model] = {}
        self.request_ids = count()
        self.request: tuple[Once, AdapterName, Adapter] | None = None

    def teardown(self) -> None:
        self.registry.close()
        self.folder.cleanup()

    def call(
        self,
        name: AdapterName,
        refusal: type[errors.LoraplexError] | None,
        write: Callable[[Once], Adapter | None],
    ) -> None:
        """Write; expect `refusal`, or, if there is none, what the model has become."""
        revision = self.registry.revision()
        once = Once(str(next(self.request_ids)), "content")
        if refusal is not None:
            with pytest.raises(refusal) as caught:
                write(once)
            assert caught.type is refusal
            assert self.registry.revision() == revision
            return
        answer = write(once)
        if answer is not None and name in self.models:
            assert self.registry.get(name) == answer
            assert self.registry.revision() in (revision, revision + 1)
            self.request = (once, name, answer)

    def missing(self, name: AdapterName) -> type[errors.LoraplexError] | None:
        """What a name that is not there is refused with."""
        return None if name in self.models else errors.AdapterNotFoundError

    def known(self, name: AdapterName, target: str) -> type[errors.LoraplexError] | None:
        """Why a target cannot be resolved, if so."""
        model = self.models.get(name)
        return None if model and model.digest(target) else errors.AdapterNotFoundError

    def servable(self, name: AdapterName, target: str) -> type[errors.LoraplexError] | None:
        """Why a target cannot be served, if so."""
        if refusal := self.known(name, target):
            return refusal
        model = self.models[name]
        is_failed = model.states[str(model.digest(target))] == "failed"
        return errors.AdapterUnavailableError if is_failed else None

    def promotable(self, name: AdapterName, target: str) -> type[errors.LoraplexError] | None:
        """Why a target cannot be promoted, if so."""
        if refusal := self.servable(name, target):
            return refusal
        model = self.models[name]
        is_deprecated = model.states[str(model.digest(target))] == "deprecated"
        return errors.VersionDeprecatedError if is_deprecated else None

    def routable(
        self, name: AdapterName, target: str, has_already: Callable[[Model], set[str]]
    ) -> type[errors.LoraplexError] | None:
        """Why a target cannot be given traffic or a shadow, if so."""
        model = self.models.get(name)
        if model and model.digest(target) in has_already(model):
            return self.servable(name, target)
        return self.promotable(name, target)

    @rule(
        name=NAMES,
        digest=DIGESTS,
        on_existing=st.sampled_from(list(OnExisting)),
        alias=st.one_of(st.just(""), ALIASES),
    )
    def register(self, name: AdapterName, digest: str, on_existing: OnExisting, alias: str) -> None:
        model = self.models.get(name)
        refusal: type[errors.LoraplexError] | None = None
        moving = {alias} - {""} | ({"stable"} if on_existing is OnExisting.PROMOTE else set())
        if model is None:
            self.models[name] = Model(
                {digest: "ready"}, {"stable": digest, **({alias: digest} if alias else {})}
            )
        elif digest not in model.states and on_existing is OnExisting.REFUSE:
            refusal = errors.AdapterExistsError
        elif model.states.get(digest) == "deprecated" and moving:
            refusal = errors.VersionDeprecatedError
        else:
            model.states[digest] = "deprecated" if model.states.get(digest) == "deprecated" else "ready"
            for one in moving:
                model.point(one, digest)
        self.call(
            name,
            refusal,
            lambda once: self.registry.register(
                name, version(digest), on_existing=on_existing, alias=alias, once=once
            ),
        )

    @rule(name=NAMES, which=TARGETS, alias=ALIASES)
    def promote(self, name: AdapterName, which: str, alias: str) -> None:
        refusal = self.promotable(name, which)
        if refusal is None:
            self.models[name].point(alias, str(self.models[name].digest(which)))
        self.call(name, refusal, lambda once: self.registry.promote(name, which, alias=alias, once=once))

    @rule(name=NAMES, alias=ALIASES)
    def roll_back(self, name: AdapterName, alias: str) -> None:
        refusal: type[errors.LoraplexError] | None = None
        model = self.models.get(name)
        if model is None or alias not in model.aliases:
            refusal = errors.AdapterNotFoundError
        elif not model.past.get(alias):
            refusal = errors.NothingToRollBackError
        elif model.states[model.past[alias][-1]] == "failed":
            refusal = errors.AdapterUnavailableError
        else:
            model.aliases[alias] = model.past[alias].pop()
            model.traffic = [] if alias == "stable" else model.traffic
        self.call(name, refusal, lambda once: self.registry.rollback(name, alias=alias, once=once))

    @rule(name=NAMES, alias=ALIASES)
    def delete_alias(self, name: AdapterName, alias: str) -> None:
        refusal: type[errors.LoraplexError] | None = None
        model = self.models.get(name)
        if model is None or alias not in model.aliases:
            refusal = errors.AdapterNotFoundError
        elif alias == "stable" or alias in model.routed():
            refusal = errors.AliasInUseError
        else:
            del model.aliases[alias]
            model.past.pop(alias, None)
        self.call(name, refusal, lambda once: self.registry.delete_alias(name, alias, once=once))

    @rule(name=NAMES, shares=st.lists(TARGETS, max_size=3), weight=st.integers(1, 10_000))
    def split(self, name: AdapterName, shares: list[str], weight: int) -> None:
        refusal = self.missing(name)
        for target in shares:
            refusal = refusal or self.routable(
                name, target, lambda model: model.served() | {model.aliases["stable"]}
            )
        if refusal is None:
            model = self.models[name]
            fixed = [t if t in model.aliases else str(model.digest(t)) for t in shares]
            if len(set(fixed)) < len(fixed):
                refusal = errors.InvalidRequestError
            else:
                model.traffic = [(target, weight) for target in fixed]
        self.call(
            name,
            refusal,
            lambda once: self.registry.split(name, [TrafficShare(t, weight) for t in shares], once=once),
        )

    @rule(name=NAMES, which=st.one_of(st.none(), TARGETS), percent=st.integers(1, 100))
    def set_shadow(self, name: AdapterName, which: str | None, percent: int) -> None:
        refusal = self.missing(name)
        if which is not None:
            refusal = refusal or self.routable(name, which, Model.shadowing)
        if refusal is None:
            model = self.models[name]
            fixed = which if which is None or which in model.aliases else model.digest(which)
            model.shadow = (fixed, percent) if fixed else None
        shadow = Shadow(which, percent) if which else None
        self.call(name, refusal, lambda once: self.registry.set_shadow(name, shadow, once=once))

    @rule(name=NAMES, is_pinned=st.booleans())
    def set_pinned(self, name: AdapterName, is_pinned: bool) -> None:
        refusal: type[errors.LoraplexError] | None = None
        model = self.models.get(name)
        if model is None:
            refusal = errors.AdapterNotFoundError
        elif is_pinned and not model.is_pinned:
            pinned = [other for other in self.models.values() if other.is_pinned] + [model]
            if len({digest for one in pinned for digest in one.served()}) > MAX_PINNED:
                refusal = errors.TooManyPinnedError
        if refusal is None and model is not None:
            model.is_pinned = is_pinned
        self.call(
            name,
            refusal,
            lambda once: self.registry.set_pinned(name, is_pinned, max_pinned=MAX_PINNED, once=once),
        )

    @rule(name=NAMES, digest=DIGESTS, undo=st.booleans())
    def deprecate(self, name: AdapterName, digest: str, undo: bool) -> None:
        refusal = self.known(name, digest) if undo else self.servable(name, digest)
        if refusal is None:
            states = self.models[name].states
            if states[digest] != "failed":
                states[digest] = "ready" if undo else "deprecated"
        self.call(name, refusal, lambda once: self.registry.deprecate(name, digest, undo=undo, once=once))

    @rule(name=NAMES, digest=DIGESTS)
    def mark_failed(self, name: AdapterName, digest: str) -> None:
        refusal = self.known(name, digest)
        if refusal is None:
            self.models[name].states[digest] = "failed"
        self.call(name, refusal, lambda _once: self.registry.mark_failed(name, digest))
        self.request = None  # it was not this write's

    @rule(name=NAMES, digest=DIGESTS)
    def delete_version(self, name: AdapterName, digest: str) -> None:
        refusal = self.known(name, digest)
        if refusal is None:
            model = self.models[name]
            if digest in model.aliases.values() or digest in model.routed():
                refusal = errors.VersionInUseError
            else:
                del model.states[digest]
                for alias, past in model.past.items():
                    steps = [*(one for one in past if one != digest), model.aliases[alias]]
                    model.past[alias] = [a for a, b in pairwise(steps) if a != b]
        self.call(name, refusal, lambda once: self.registry.delete_version(name, digest, once=once))

    @rule(name=NAMES, labels=st.dictionaries(st.sampled_from("xy"), st.text("ab", max_size=2)))
    def update_labels(self, name: AdapterName, labels: dict[str, str]) -> None:
        refusal = self.missing(name)
        if refusal is None:
            self.models[name].labels = labels
        self.call(name, refusal, lambda once: self.registry.update_labels(name, labels, once=once))

    @rule(name=NAMES)
    def delete(self, name: AdapterName) -> None:
        refusal = None if self.models.pop(name, None) else errors.AdapterNotFoundError
        self.call(name, refusal, lambda once: self.registry.delete(name, once=once))

    @precondition(lambda self: self.request is not None)
    @rule()
    def repeat_an_earlier_request(self) -> None:
        assert self.request is not None
        once, name, answer = self.request
        assert self.registry.update_labels(name, {"never": "written"}, once=once) == answer

    @rule()
    def restart(self) -> None:
        self.registry.close()
        self.registry = AdapterRegistry(self.url)

    @invariant()
    def both_say_the_same(self) -> None:
        found = {adapter.name: adapter for adapter in self.registry.list_page(10)}
        assert list(found) == sorted(self.models)
        for name, model in self.models.items():
            assert as_model(found[name], model.past) == model
            assert list(as_model(found[name], {}).states) == list(model.states)
        digests = {digest for model in self.models.values() for digest in model.states}
        assert self.registry.referenced(letter * 64 for letter in "abcd") == digests
        events = self.registry.events(0, 1000)
        assert [event.revision for event in events] == list(range(1, self.registry.revision() + 1))


TestRegistry = RegistryMachine.TestCase
TestRegistry.settings = settings(max_examples=25, stateful_step_count=40)
