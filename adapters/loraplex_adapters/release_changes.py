"""What each change does to an adapter, decided without a database: a release goes in, the changed one comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from loraplex_adapters.errors import (
    AdapterExistsError,
    AdapterNotFoundError,
    AdapterUnavailableError,
    AliasInUseError,
    FieldViolation,
    InvalidRequestError,
    NothingToRollBackError,
    TooManyVersionsError,
    VersionDeprecatedError,
    VersionInUseError,
    invalid,
)
from loraplex_adapters.names import STABLE, AdapterName, parse_alias, parse_digest
from loraplex_adapters.releases import (
    MAX_SHARES,
    MAX_VERSIONS,
    Adapter,
    EventKind,
    OnExisting,
    Shadow,
    TrafficShare,
    Version,
    VersionState,
)

MAX_HISTORY = 32
"""So many steps back an alias can be rolled."""
MAX_ALIASES = 64
MAX_LABELS = 32
_MAX_LABEL_KEY_CHARACTERS = 63
_MAX_LABEL_VALUE_CHARACTERS = 255
_MAX_WEIGHT = 10_000


@dataclass(frozen=True, slots=True)
class Release:
    """An adapter with what its aliases pointed at before, which no caller sees."""

    adapter: Adapter
    history: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # alias -> digests, the last one last


@dataclass(frozen=True, slots=True)
class Change:
    """A release after a change, and the event that tells of it."""

    release: Release
    kind: EventKind
    digest: str = ""
    aliases: tuple[str, ...] = ()


def new_release(
    name: AdapterName, version: Version, alias: str, labels: Mapping[str, str], now: datetime
) -> Change:
    """The first version of a name is "stable", and `alias` if one is given."""
    check_labels(labels)
    adapter = Adapter(
        name=name,
        versions=(version,),
        aliases={STABLE: version.digest, **({parse_alias(alias): version.digest} if alias else {})},
        labels=dict(labels),
        revision=0,
        created_at=now,
        updated_at=now,
    )
    return Change(Release(adapter), EventKind.REGISTERED, version.digest, tuple(adapter.aliases))


def register(release: Release, version: Version, on_existing: OnExisting, alias: str) -> Change | None:
    """Add a version, or prove a known one again; the event names the aliases that moved, "stable" before `alias`.

    Raises AdapterExistsError, TooManyVersionsError, VersionDeprecatedError, InvalidRequestError.
    """
    adapter = release.adapter
    known = {one.digest: one for one in adapter.versions}.get(version.digest)
    if known is None:
        _check_room(adapter, version, on_existing)
        proved = replace(adapter, versions=(version, *adapter.versions))
    else:
        proved = _with_version(adapter, _proved_again(known, version))
    moving = [STABLE] if on_existing is OnExisting.PROMOTE else []
    moving += [parse_alias(alias)] if alias and alias not in moving else []
    after = Release(proved, release.history)
    for one in moving:
        after = _point(after, one, _promotable(proved, version.digest).digest)
    if after.adapter == adapter:
        return None
    moved = tuple(
        one
        for one in moving
        if adapter.aliases.get(one) != version.digest or (one == STABLE and adapter.traffic)
    )
    kind = EventKind.PROMOTED if proved == adapter else EventKind.REGISTERED
    return Change(after, kind, version.digest, moved)


def update_labels(release: Release, labels: Mapping[str, str]) -> Change | None:
    """Replace all labels. Raises InvalidRequestError."""
    check_labels(labels)
    return _updated(release, replace(release.adapter, labels=dict(labels)))


def promote(release: Release, target: str, alias: str) -> Change | None:
    """Let an alias, made if need be, point at a version; moving "stable" ends a split.

    Raises AdapterNotFoundError, VersionDeprecatedError, AdapterUnavailableError, InvalidRequestError.
    """
    version = _promotable(release.adapter, target)
    after = _point(release, parse_alias(alias), version.digest)
    if after.adapter == release.adapter:
        return None
    return Change(after, EventKind.PROMOTED, version.digest, (alias,))


def roll_back(release: Release, alias: str) -> Change:
    """Let an alias point where it pointed before; a deprecated version may come back so, a failed one may not.

    Raises AdapterNotFoundError, NothingToRollBackError, AdapterUnavailableError.
    """
    adapter = release.adapter
    _check_alias_is_there(adapter, alias)
    past = release.history.get(alias, ())
    if not past:
        raise NothingToRollBackError(
            f"alias '{alias}' of adapter '{adapter.name}' has pointed at no earlier version; promote one"
        )
    version = _servable(adapter, past[-1])
    back = _point(release, alias, version.digest)
    return Change(
        Release(back.adapter, {**release.history, alias: past[:-1]}),
        EventKind.ROLLED_BACK,
        version.digest,
        (alias,),
    )


def delete_alias(release: Release, alias: str) -> Change:
    """Remove an alias with its history. Raises AdapterNotFoundError, AliasInUseError."""
    adapter = release.adapter
    _check_alias_is_there(adapter, alias)
    if alias == STABLE:
        raise AliasInUseError(
            f"'{STABLE}' of adapter '{adapter.name}' stays; promote another version or delete the adapter"
        )
    if alias in _routed_targets(adapter):
        raise AliasInUseError(
            f"a split or shadow of adapter '{adapter.name}' names alias '{alias}'; end it first"
        )
    aliases = {one: digest for one, digest in adapter.aliases.items() if one != alias}
    history = {one: past for one, past in release.history.items() if one != alias}
    after = Release(replace(adapter, aliases=aliases), history)
    return Change(after, EventKind.UPDATED, adapter.aliases[alias], (alias,))


def split(release: Release, traffic: Sequence[TrafficShare]) -> Change | None:
    """Spread the bare name's requests; none ends the split. A deprecated version may keep its part, or get another,
    while the bare name serves it or "stable" names it, so that it can be left by degrees.

    Raises InvalidRequestError, AdapterNotFoundError, AdapterUnavailableError, VersionDeprecatedError.
    """
    adapter = release.adapter
    violations = [
        FieldViolation(f"traffic[{i}].weight", f"must be in [1, {_MAX_WEIGHT}], not {share.weight}")
        for i, share in enumerate(traffic)
        if not 1 <= share.weight <= _MAX_WEIGHT
    ]
    if len(traffic) > MAX_SHARES:
        violations.append(
            FieldViolation("traffic", f"must have at most {MAX_SHARES} shares, not {len(traffic)}")
        )
    if violations:
        raise InvalidRequestError(violations)
    own = {adapter.stable.digest, *(version.digest for version in adapter.served_by_name())}
    shares = tuple(TrafficShare(_routable(adapter, share.target, own), share.weight) for share in traffic)
    if len({share.target for share in shares}) < len(shares):
        raise invalid("traffic", "must not name a target twice")
    return _updated(release, replace(adapter, traffic=shares))


def set_shadow(release: Release, shadow: Shadow | None) -> Change | None:
    """Let a version answer unseen, or none; a deprecated one only if it does so already.

    Raises InvalidRequestError, AdapterNotFoundError, AdapterUnavailableError, VersionDeprecatedError.
    """
    adapter = release.adapter
    if shadow is None:
        return _updated(release, replace(adapter, shadow=None))
    if not 1 <= shadow.percent <= 100:
        raise invalid("percent", f"must be in [1, 100], not {shadow.percent}")
    own = {adapter.version(adapter.shadow.target).digest} if adapter.shadow else set()
    fixed = Shadow(_routable(adapter, shadow.target, own), shadow.percent)
    return _updated(release, replace(adapter, shadow=fixed))


def set_pinned(release: Release, is_pinned: bool) -> Change | None:
    """Keep what the bare name serves resident, or let go of it."""
    return _updated(release, replace(release.adapter, is_pinned=is_pinned))


def deprecate(release: Release, target: str, undo: bool) -> Change | None:
    """Mark a version as one to move away from, or take the mark back.

    Raises InvalidRequestError, AdapterNotFoundError, AdapterUnavailableError.
    """
    version = _of_digest(release.adapter, target)
    if undo:
        is_changing = version.state is VersionState.DEPRECATED
    else:
        is_changing = _servable(release.adapter, target).state is VersionState.READY
    if not is_changing:
        return None
    state = VersionState.READY if undo else VersionState.DEPRECATED
    after = _with_version(release.adapter, replace(version, state=state))
    return Change(Release(after, release.history), EventKind.DEPRECATED, version.digest)


def mark_failed(release: Release, digest: str) -> Change | None:
    """A version's stored package turned out missing or damaged. Raises AdapterNotFoundError."""
    version = release.adapter.version(digest)
    if version.state is VersionState.FAILED:
        return None
    after = _with_version(release.adapter, replace(version, state=VersionState.FAILED))
    return Change(Release(after, release.history), EventKind.FAILED, version.digest)


def delete_version(release: Release, target: str) -> Change:
    """Remove a version; aliases forget that they pointed at it.

    Raises InvalidRequestError, AdapterNotFoundError, VersionInUseError.
    """
    adapter = release.adapter
    digest = _of_digest(adapter, target).digest
    users = [f"alias '{alias}'" for alias, named in adapter.aliases.items() if named == digest]
    users += ["a split or shadow"] if digest in _routed_targets(adapter) else []
    if users:
        raise VersionInUseError(
            f"version {digest[:12]}… of adapter '{adapter.name}' is named by {', '.join(users)}; "
            "let that name another version first"
        )
    after = replace(adapter, versions=tuple(v for v in adapter.versions if v.digest != digest))
    history = {
        alias: _forget(past, digest, adapter.aliases[alias]) for alias, past in release.history.items()
    }
    return Change(Release(after, history), EventKind.VERSION_DELETED, digest)


def _proved_again(known: Version, proved: Version) -> Version:
    """What a proof can tell anew of the same weights. The rest of `known` follows from its digest, or is its story.

    `num_elements` follows from the digest too, but of rows from before releases it is only an upper bound.
    """
    return replace(
        known,
        state=VersionState.READY if known.state is VersionState.FAILED else known.state,
        num_elements=proved.num_elements,
        base_fingerprint=proved.base_fingerprint,
        template_hash=proved.template_hash,
    )


def _check_room(adapter: Adapter, version: Version, on_existing: OnExisting) -> None:
    if on_existing is OnExisting.REFUSE:
        raise AdapterExistsError(
            f"adapter '{adapter.name}' is registered with other weights (digest {adapter.stable.digest[:12]}…); "
            "add a version, or choose another name"
        )
    if len(adapter.versions) >= MAX_VERSIONS:
        raise TooManyVersionsError(
            f"adapter '{adapter.name}' has {len(adapter.versions)} versions, as many as one may have; delete some"
        )


def _point(release: Release, alias: str, digest: str) -> Release:
    """`alias` names `digest`, and remembers what it named before. "stable" takes all of the bare name's requests."""
    adapter, history = release.adapter, release.history
    before = adapter.aliases.get(alias)
    if before is None and len(adapter.aliases) >= MAX_ALIASES:
        raise invalid("alias", f"one adapter may have at most {MAX_ALIASES} aliases; delete some")
    if before is not None and before != digest:
        history = {**history, alias: (*history.get(alias, ()), before)[-MAX_HISTORY:]}
    after = replace(
        adapter,
        aliases={**adapter.aliases, alias: digest},
        traffic=() if alias == STABLE else adapter.traffic,
    )
    return Release(after, history)


def _forget(past: tuple[str, ...], digest: str, current: str) -> tuple[str, ...]:
    """A history without `digest`, and without steps back that would then change nothing."""
    kept: list[str] = []
    for one in past:
        if one != digest and (not kept or kept[-1] != one):
            kept.append(one)
    if kept and kept[-1] == current:
        kept.pop()
    return tuple(kept)


def _updated(release: Release, after: Adapter) -> Change | None:
    if after == release.adapter:
        return None
    return Change(Release(after, release.history), EventKind.UPDATED)


def _with_version(adapter: Adapter, version: Version) -> Adapter:
    """`adapter` with `version` in the place of the one with its digest."""
    versions = tuple(version if one.digest == version.digest else one for one in adapter.versions)
    return replace(adapter, versions=versions)


def _servable(adapter: Adapter, target: str) -> Version:
    version = adapter.version(target)
    if version.state is VersionState.FAILED:
        raise AdapterUnavailableError(
            f"the stored package of version {version.digest[:12]}… of adapter '{adapter.name}' is missing or "
            "damaged; register it again"
        )
    return version


def _promotable(adapter: Adapter, target: str) -> Version:
    version = _servable(adapter, target)
    _check_not_deprecated(adapter, version)
    return version


def _of_digest(adapter: Adapter, target: str) -> Version:
    return adapter.version(parse_digest(target, "version"))


def _routable(adapter: Adapter, target: str, own: set[str]) -> str:
    """The alias, or the whole digest: its beginning could later be that of another version too.

    `own` are the digests that are routed so already, and may be deprecated.
    """
    version = _servable(adapter, target)
    if version.digest not in own:
        _check_not_deprecated(adapter, version)
    return target if target in adapter.aliases else version.digest


def _check_not_deprecated(adapter: Adapter, version: Version) -> None:
    if version.state is VersionState.DEPRECATED:
        raise VersionDeprecatedError(
            f"version {version.digest[:12]}… of adapter '{adapter.name}' is deprecated; take the mark back first"
        )


def _routed_targets(adapter: Adapter) -> set[str]:
    """Aliases and digests that a split or a shadow names."""
    shadowed = {adapter.shadow.target} if adapter.shadow else set()
    return {share.target for share in adapter.traffic} | shadowed


def _check_alias_is_there(adapter: Adapter, alias: str) -> None:
    if alias not in adapter.aliases:
        raise AdapterNotFoundError(f"adapter '{adapter.name}' has no alias '{alias[:64]}'")


def check_labels(labels: Mapping[str, str], field_name: str = "labels") -> None:
    """Raises InvalidRequestError for `field_name` where there are too many, or one is out of range."""
    if len(labels) > MAX_LABELS:
        raise invalid(field_name, f"must be at most {MAX_LABELS}, not {len(labels)}")
    violations = []
    for key, value in labels.items():
        if not 1 <= len(key) <= _MAX_LABEL_KEY_CHARACTERS:
            problem = f"keys must have 1 to {_MAX_LABEL_KEY_CHARACTERS} characters, not {len(key)}"
        elif len(value) > _MAX_LABEL_VALUE_CHARACTERS:
            problem = f"values may have up to {_MAX_LABEL_VALUE_CHARACTERS} characters, not {len(value)}"
        elif "\0" in key + value:
            problem = "must not hold the character 0"
        else:
            continue
        violations.append(FieldViolation(field_name, problem))
    if violations:
        raise InvalidRequestError(violations)
