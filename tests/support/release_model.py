"""Adapters as releases, in the plainest words: what a server must do with them. Digests are package numbers."""

from __future__ import annotations

from dataclasses import dataclass, field


class Refused(Exception):
    """The model refuses a change; the argument is the reason that the server must give."""


@dataclass(frozen=True)
class ModelAnswers:
    """What a request gets."""

    allowed: set[int]  # one of these
    shadow: int | None  # answers unseen, unless it is served

    def is_shadowed(self, package: int) -> bool:
        """Where this one is served."""
        return self.shadow is not None and self.shadow != package


@dataclass
class ModelAdapter:
    """One adapter."""

    versions: list[int]  # newest first
    aliases: dict[str, int]
    history: dict[str, list[int]] = field(default_factory=dict)
    traffic: list[tuple[str | int, int]] = field(default_factory=list)  # (alias or package, weight)
    shadow: str | int | None = None
    deprecated: set[int] = field(default_factory=set)
    is_pinned: bool = False
    labels: dict[str, str] = field(default_factory=dict)

    def point(self, alias: str, package: int) -> None:
        before = self.aliases.get(alias)
        if before is not None and before != package:
            self.history.setdefault(alias, []).append(before)
        self.aliases[alias] = package
        if alias == "stable":
            self.traffic = []

    def served(self, target: str | int | None) -> set[int]:
        """What may answer."""
        if target is None:
            return {self.of(each) for each, _ in self.traffic} or {self.aliases["stable"]}
        return {self.of(target)}

    def answers(self, target: str | int | None) -> ModelAnswers:
        shadow = self.of(self.shadow) if target is None and self.shadow is not None else None
        return ModelAnswers(self.served(target), shadow)

    def of(self, target: str | int) -> int:
        if isinstance(target, int):
            if target not in self.versions:
                raise Refused("ADAPTER_NOT_FOUND")
            return target
        if target not in self.aliases:
            raise Refused("ADAPTER_NOT_FOUND")
        return self.aliases[target]

    def of_routable(self, target: str | int, has_already: set[int]) -> int:
        """What a split or shadow may name; `has_already`, also deprecated ones."""
        package = self.of(target)
        if package in self.deprecated - has_already:
            raise Refused("VERSION_DEPRECATED")
        return package


class ModelRegistry:
    """All adapters. A change either takes effect whole, or raises Refused and leaves everything as it was."""

    def __init__(self) -> None:
        self.adapters: dict[str, ModelAdapter] = {}

    def get(self, name: str) -> ModelAdapter:
        if name not in self.adapters:
            raise Refused("ADAPTER_NOT_FOUND")
        return self.adapters[name]

    def register(self, name: str, package: int, on_existing: str, alias: str) -> None:
        adapter = self.adapters.get(name)
        if adapter is None:
            self.adapters[name] = ModelAdapter(
                [package], {"stable": package} | ({alias: package} if alias else {})
            )
            return
        is_new = package not in adapter.versions
        if is_new and on_existing == "refuse":
            raise Refused("ADAPTER_EXISTS")
        moving = (["stable"] if on_existing == "promote" else []) + ([alias] if alias else [])
        if moving and package in adapter.deprecated:
            raise Refused("VERSION_DEPRECATED")
        if is_new:
            adapter.versions.insert(0, package)
        for each in moving:
            adapter.point(each, package)

    def promote(self, name: str, target: str | int, alias: str) -> None:
        adapter = self.get(name)
        package = adapter.of(target)
        if package in adapter.deprecated:
            raise Refused("VERSION_DEPRECATED")
        adapter.point(alias, package)

    def rollback(self, name: str, alias: str) -> None:
        adapter = self.get(name)
        adapter.of(alias)
        past = adapter.history.get(alias, [])
        if not past:
            raise Refused("NOTHING_TO_ROLL_BACK")
        package = past.pop()
        adapter.aliases[alias] = package
        if alias == "stable":
            adapter.traffic = []

    def split(self, name: str, traffic: list[tuple[str | int, int]]) -> None:
        adapter = self.get(name)
        for target, _ in traffic:
            adapter.of_routable(target, adapter.served(None) | {adapter.of("stable")})
        adapter.traffic = traffic

    def set_shadow(self, name: str, target: str | int | None) -> None:
        adapter = self.get(name)
        if target is not None:
            adapter.of_routable(target, set() if adapter.shadow is None else {adapter.of(adapter.shadow)})
        adapter.shadow = target

    def pin(self, name: str, is_pinned: bool) -> None:
        self.get(name).is_pinned = is_pinned

    def update_labels(self, name: str, labels: dict[str, str]) -> None:
        self.get(name).labels = labels

    def deprecate(self, name: str, package: int, undo: bool) -> None:
        adapter = self.get(name)
        adapter.of(package)
        (adapter.deprecated.discard if undo else adapter.deprecated.add)(package)

    def delete_version(self, name: str, package: int) -> None:
        adapter = self.get(name)
        adapter.of(package)
        routed = [adapter.shadow, *(target for target, _ in adapter.traffic)]
        if package in adapter.aliases.values() or package in routed:
            raise Refused("VERSION_IN_USE")
        adapter.versions.remove(package)
        adapter.deprecated.discard(package)
        for alias, past in adapter.history.items():
            kept = [each for each in past if each != package]
            # Steps that would then change nothing go too.
            steps = [each for i, each in enumerate(kept) if i == 0 or kept[i - 1] != each]
            if steps and steps[-1] == adapter.aliases[alias]:
                steps.pop()
            adapter.history[alias] = steps

    def delete(self, name: str) -> None:
        self.get(name)
        del self.adapters[name]
