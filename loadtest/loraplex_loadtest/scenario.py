"""A scenario: everything that decides what is sent, when, and what counts as good. Read from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from loraplex_loadtest.disturbances.schedule import Disturbance, Share
from loraplex_loadtest.errors import ScenarioInvalidError
from loraplex_loadtest.spec import Spec
from loraplex_loadtest.workload.arrivals import Arrivals, ClosedLoop, duration_of
from loraplex_loadtest.workload.lengths import FixedLength, Length
from loraplex_loadtest.workload.popularity import AdapterMix, HotSetMix, UniformMix

BASE = "base"
"""How a scenario names the base model itself."""


class Adapters(Spec):
    """Which adapters answer, and how often each."""

    # "registered": all that the server has; "variants": those that `setup` makes; or names, of which "base" is none.
    names: Literal["registered", "variants"] | Annotated[tuple[str, ...], Field(min_length=1)] = "registered"
    first: PositiveInt | None = None  # only so many of them
    mix: AdapterMix = UniformMix(kind="uniform")


class Prompt(Spec):
    """What is asked."""

    form: Literal["chat", "raw"] = "raw"
    length: Length = FixedLength(kind="fixed", tokens=64)
    shared_prefix: Share = 0.0  # of each prompt's tokens, equal for all requests of a tenant


class Answer(Spec):
    """How much is generated."""

    length: Length = FixedLength(kind="fixed", tokens=32)
    ignore_eos: bool = True  # answers then have exactly that length


class Sampling(Spec):
    """As in SamplingParams of the API; what is left out stays unset."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_k: NonNegativeInt | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: NonNegativeInt | None = None


class Traffic(Spec):
    """One source of requests with its own arrivals."""

    name: str = "all"
    arrivals: Arrivals
    adapters: Adapters = Adapters()
    # Weights by name; empty: the tenant of the adapter's name. "{tenant}" in an adapter's name stands for it.
    tenants: Mapping[str, PositiveFloat] = {}
    prompt: Prompt = Prompt()
    answer: Answer = Answer()
    sampling: Sampling = Sampling()


class Objectives(Spec):
    """What a request must meet to count as good. None: anything will do."""

    ttft_s: PositiveFloat | None = None
    tpot_s: PositiveFloat | None = None
    e2e_s: PositiveFloat | None = None


class Client(Spec):
    """How the generator behaves all the time; disturbances change that for a while."""

    processes: PositiveInt = 1
    connections: PositiveInt = 1  # of each process
    reopen_every: NonNegativeInt = 0  # a new connection after so many requests; 0: never
    deadline_s: PositiveFloat = 300.0
    cancel_share: Share = 0.0
    cancel_after_tokens: PositiveInt = 4
    slow_share: Share = 0.0
    slow_pause_s: PositiveFloat = 0.1
    retries: bool = False  # True: as the client library does; they then hide what the server refused


class Window(Spec):
    """Which requests are measured: those that are meant for a moment inside, and where the run ends."""

    warm_up_s: NonNegativeFloat = 0.0
    cool_down_s: NonNegativeFloat = 0.0  # before the last arrival
    drain_s: PositiveFloat = 60.0  # how long the last answers may take


class Setup(Spec):
    """What the run brings to the server before it starts, and takes away after it."""

    package: Path | None = None  # PEFT folder that variants, registrations and updates are made of
    variants: NonNegativeInt = 0  # adapters that differ in one bit, registered before the run
    prefix: str = "load-variant"
    keep: bool = False


class Scenario(Spec):
    """A load test."""

    name: str
    description: str = ""
    seed: NonNegativeInt = 0
    traffic: Annotated[tuple[Traffic, ...], Field(min_length=1)]
    objectives: Objectives = Objectives()
    client: Client = Client()
    window: Window = Window()
    setup: Setup = Setup()
    tokenizer: Path | None = None  # tokenizer.json or the base's folder; None: a word counts as a token
    disturbances: tuple[Disturbance, ...] = ()
    fail_if: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Scenario:
        names = [traffic.name for traffic in self.traffic]
        if len(set(names)) < len(names):
            raise ValueError("two sources of traffic have the same name")
        for traffic in self.traffic:
            mix = traffic.adapters.mix
            if isinstance(traffic.arrivals, ClosedLoop) and isinstance(mix, HotSetMix) and mix.shift_at_s:
                raise ValueError(
                    f"traffic {traffic.name!r}: a closed loop has no intended moments, so its hot set cannot shift"
                )
        return self

    @property
    def is_closed(self) -> bool:
        """Whether no request waits for its moment: then there is no intended rate."""
        return all(isinstance(traffic.arrivals, ClosedLoop) for traffic in self.traffic)


def ready_scenarios() -> dict[str, Path]:
    """Those in this package, by name."""
    folder = Path(str(files("loraplex_loadtest") / "scenarios"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_scenario(name_or_path: str) -> Path:
    """A file, or the name of a ready one."""
    if (path := Path(name_or_path)).is_file():
        return path
    ready = ready_scenarios()
    if name_or_path not in ready:
        raise ScenarioInvalidError(
            f"no file and no ready scenario {name_or_path!r}; ready are: {', '.join(ready)}"
        )
    return ready[name_or_path]


def read_scenario(file: Path, changes: Mapping[str, Any] | None = None) -> Scenario:
    """A scenario with some keys replaced; dots reach into sections ("traffic.0.arrivals.rate").

    Paths in it are relative to its folder. Raises ScenarioInvalidError that names every key at fault.
    """
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ScenarioInvalidError(f"{file.name} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise ScenarioInvalidError(f"{file.name} is not YAML: {error}") from None
    if not isinstance(document, dict):
        raise ScenarioInvalidError(f"{file.name} must be a mapping of keys")
    _resolve_paths(document, file.parent)
    for key, value in (changes or {}).items():
        _replace(document, key.split("."), value)
    return make_scenario(document)


def of_duration(scenario: Scenario, duration_s: float) -> Scenario:
    """The same in another time: every moment and duration is stretched alike, rates stay. Traces keep their times."""
    longest = max(duration_of(traffic.arrivals) for traffic in scenario.traffic)
    return make_scenario(_stretched(scenario.model_dump(mode="python"), duration_s / longest))


_STRETCHED = frozenset(
    {"duration_s", "period_s", "shift_at_s", "at_s", "every_s", "for_s", "warm_up_s", "cool_down_s"}
)


def _stretched(value: Any, factor: float) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _scaled(one, factor) if key in _STRETCHED else _stretched(one, factor)
            for key, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [_stretched(one, factor) for one in value]
    return value


def _scaled(value: Any, factor: float) -> Any:
    if isinstance(value, list | tuple):
        return [one * factor for one in value]
    return None if value is None else value * factor


def make_scenario(document: Mapping[str, Any]) -> Scenario:
    """Checks a document. Raises ScenarioInvalidError that names every key at fault."""
    try:
        return Scenario.model_validate(document)
    except ValidationError as error:
        told = [f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors()]
        raise ScenarioInvalidError("; ".join(told)) from None


def _replace(document: Any, keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        if isinstance(document, list):
            if not key.isdecimal() or int(key) >= len(document):
                raise ScenarioInvalidError(f"there is no entry {key} to set {'.'.join(keys)}")
            document = document[int(key)]
        elif isinstance(document, dict):
            document = document.setdefault(key, {})
        else:
            break
    if not isinstance(document, dict):
        raise ScenarioInvalidError(f"{'.'.join(keys)} names no key of a section")
    document[keys[-1]] = value


def _resolve_paths(document: Any, folder: Path) -> None:
    """Makes `file`, `package`, `recipe` and `tokenizer` relative to the scenario's folder."""
    values = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in list(values):
        if isinstance(value, dict | list):
            _resolve_paths(value, folder)
        elif (
            key in ("file", "package", "recipe", "tokenizer")
            and isinstance(value, str)
            and value != "bundled"
        ):
            document[key] = str(folder / value)
