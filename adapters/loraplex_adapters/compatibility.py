"""Whether a package fits a base: every tensor lands on a module and every named module has its tensors."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from loraplex_adapters.base_spec import LORA_MODULES, BaseSpec
from loraplex_adapters.errors import AdapterIncompatibleError, AdapterInvalidError
from loraplex_adapters.lora_settings import ALL_LINEAR, LoraSettings
from loraplex_adapters.package import (
    DEFAULT_LIMITS,
    LORA_KEY,
    WEIGHTS_FILE,
    AdapterPackage,
    PackageLimits,
    read_package,
)

if TYPE_CHECKING:
    from torch import Tensor

_PARENT = {module: "self_attn" if module[0] in "qkvo" else "mlp" for module in LORA_MODULES}
_MODULE_PATH = re.compile(
    r"model\.layers\.(?P<layer>0|[1-9]\d{0,5})\.(?P<parent>self_attn|mlp)\.(?P<module>\w+)"
)
_OUTSIDE_LAYERS = ("lm_head", "model.embed_tokens")
_MAX_MISFITS_SHOWN = 8

Place = tuple[int, str]  # (layer, module of LORA_MODULES)


@dataclass(frozen=True, slots=True)
class LoraModulePlan:
    """Which two tensors change one linear module of the base."""

    layer: int
    module: str  # of LORA_MODULES
    rank: int
    scaling: float  # on B·A
    a_key: str
    b_key: str


@dataclass(frozen=True, slots=True)
class LoraPlan:
    """All modules that an adapter changes, by layer and then in the order of LORA_MODULES."""

    modules: tuple[LoraModulePlan, ...]
    max_rank: int  # largest rank of any module
    target_modules: tuple[str, ...]  # sorted

    def num_elements(self, spec: BaseSpec) -> int:
        """Elements of both matrices of all modules: what the adapter takes while it is resident."""
        return sum(module.rank * sum(spec.module_shapes[module.module]) for module in self.modules)


@dataclass(frozen=True, slots=True)
class LoraModule:
    """The two matrices of one linear module: delta(x) = scaling · (x @ aᵀ) @ bᵀ."""

    a: Tensor  # [rank, in_features], dtype as stored, CPU
    b: Tensor  # [out_features, rank], dtype as stored, CPU
    rank: int
    scaling: float


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """An adapter's weights in host memory, by (layer, module)."""

    digest: str
    rank: int  # largest rank of any module
    modules: dict[Place, LoraModule]


def match_to_base(package: AdapterPackage, spec: BaseSpec, max_rank: int) -> LoraPlan:
    """Give every tensor of `package` its module of the base.

    Raises AdapterIncompatibleError, listing all misfits: tensors without a module, wrong shapes, A without
    B, modules that the configuration names but that have no tensors or do not exist, and ranks above
    `max_rank`.
    """
    misfits: list[str] = []
    pairs = _pair_tensors(package, spec, misfits)
    misfits += _missing_targets(package.config, spec, pairs)
    plans = [
        _plan_module(package, spec, place, pairs[place], misfits)
        for place in sorted(pairs, key=lambda place: (place[0], LORA_MODULES.index(place[1])))
    ]
    modules = tuple(plan for plan in plans if plan is not None)
    rank = max((plan.rank for plan in modules), default=0)
    if rank > max_rank:
        misfits.append(f"rank {rank} is above this server's largest, {max_rank}")
    if misfits:
        raise AdapterIncompatibleError(_describe(misfits, spec))
    return LoraPlan(modules, rank, tuple(sorted({plan.module for plan in modules})))


def load_lora_weights(
    source: Path | AdapterPackage, spec: BaseSpec, max_rank: int, limits: PackageLimits = DEFAULT_LIMITS
) -> LoraWeights:
    """Load the weights of a package folder, mapped from its file, so pages are read when they are first used.

    A folder is checked first as `read_package` does. The file must not be truncated while the tensors
    live; a stored package never is (deleting it is safe). Raises AdapterInvalidError and
    AdapterIncompatibleError.
    """
    package = source if isinstance(source, AdapterPackage) else read_package(source, limits)
    plan = match_to_base(package, spec, max_rank)
    try:
        with safe_open(package.folder / WEIGHTS_FILE, framework="pt", device="cpu") as file:
            modules = {
                (m.layer, m.module): LoraModule(
                    file.get_tensor(m.a_key), file.get_tensor(m.b_key), m.rank, m.scaling
                )
                for m in plan.modules
            }
    except (SafetensorError, OSError) as error:
        raise AdapterInvalidError(f"{WEIGHTS_FILE} cannot be read any more") from error
    return LoraWeights(package.digest, plan.max_rank, modules)


def module_path(layer: int, module: str) -> str:
    """Path of a module in the Hugging Face model, as PEFT sees it: "model.layers.0.self_attn.q_proj"."""
    return f"model.layers.{layer}.{_PARENT[module]}.{module}"


def _pair_tensors(package: AdapterPackage, spec: BaseSpec, misfits: list[str]) -> dict[Place, dict[str, str]]:
    """Place → {"A": key, "B": key}; either may be missing. What has no place goes to `misfits`."""
    pairs: dict[Place, dict[str, str]] = defaultdict(dict)
    for key in sorted(package.tensors):
        lora_key = LORA_KEY.fullmatch(key)
        place = _place_of(lora_key["path"], spec) if lora_key else None
        if lora_key is None or place is None:
            path = lora_key["path"] if lora_key else ""
            misfits.append(f"'{key}' {_why_no_place(path, spec)}")
        elif not package.config.selects(lora_key["path"]):
            misfits.append(f"'{key}' is not among the adapter's own target_modules")
        elif lora_key["part"] in pairs[place]:
            misfits.append(f"'{key}' occurs twice, with and without '.default'")
        else:
            pairs[place][lora_key["part"]] = key
    return pairs


def _place_of(path: str, spec: BaseSpec) -> Place | None:
    match = _MODULE_PATH.fullmatch(path)
    if match is None or match["module"] not in spec.module_shapes or int(match["layer"]) >= spec.num_layers:
        return None
    if _PARENT.get(match["module"]) != match["parent"]:
        return None
    return int(match["layer"]), match["module"]


def _why_no_place(path: str, spec: BaseSpec) -> str:
    if path in _OUTSIDE_LAYERS:
        return "changes the embedding or the output layer; only modules of decoder layers are served"
    match = _MODULE_PATH.fullmatch(path)
    if match is not None and int(match["layer"]) >= spec.num_layers:
        return f"names layer {match['layer']}; the base has {spec.num_layers}"
    return "fits no module of the base"


def _missing_targets(config: LoraSettings, spec: BaseSpec, pairs: dict[Place, dict[str, str]]) -> list[str]:
    """What the configuration promises and the tensors do not hold."""
    paths = {
        (layer, m): module_path(layer, m) for layer in range(spec.num_layers) for m in spec.module_shapes
    }
    missing = [
        f"target module '{path}' has no tensors"
        for place, path in paths.items()
        if place not in pairs and config.selects(path)
    ]
    if config.target_modules != ALL_LINEAR:
        missing += [
            f"target module '{path}' is not served; only modules of decoder layers are"
            for path in _OUTSIDE_LAYERS
            if config.selects(path)
        ]
    if not isinstance(config.target_modules, str):
        known = (*paths.values(), *_OUTSIDE_LAYERS)
        missing += [
            f"target module '{name}' does not exist in the base"
            for name in config.target_modules
            if not any(path == name or path.endswith(f".{name}") for path in known)
        ]
    return missing


def _plan_module(
    package: AdapterPackage, spec: BaseSpec, place: Place, keys: dict[str, str], misfits: list[str]
) -> LoraModulePlan | None:
    layer, module = place
    path = module_path(layer, module)
    if keys.keys() != {"A", "B"}:
        present, absent = ("A", "B") if "A" in keys else ("B", "A")
        misfits.append(f"'{path}' has lora_{present} but no lora_{absent}")
        return None
    rank = package.config.rank_of(path)
    in_features, out_features = spec.module_shapes[module]
    for part, expected in (("A", (rank, in_features)), ("B", (out_features, rank))):
        shape = package.tensors[keys[part]].shape
        if shape != expected:
            misfits.append(f"'{keys[part]}' has shape {list(shape)}; the base needs {list(expected)}")
    return LoraModulePlan(layer, module, rank, package.config.scaling_of(path), keys["A"], keys["B"])


def _describe(misfits: list[str], spec: BaseSpec) -> str:
    shown = "; ".join(misfit[:240] for misfit in misfits[:_MAX_MISFITS_SHOWN])
    more = len(misfits) - _MAX_MISFITS_SHOWN
    rest = f"; and {more} more" if more > 0 else ""
    return f"the adapter does not fit this base ({spec.architecture}), {len(misfits)} misfits: {shown}{rest}"
