"""What a package says of itself: made on what, from what, how, and how good it was found."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraplex_server.base.fetch import DEFAULT_BASE_ID
from loraplex_server.base.fingerprint import fingerprint, template_hash, tokenizer_hash
from loraplex_trainer.recipe.document import Recipe

if TYPE_CHECKING:
    from loraplex_trainer.data.built import BuiltData

SCHEMA = 2
_LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Everything behind an adapter that its two files do not tell. Empty where it is not known."""

    recipe: Recipe  # as it was given
    resolved: Recipe  # without "auto"
    base_folder: Path
    plan: Mapping[str, Any] = field(default_factory=dict)
    data: BuiltData | None = None
    training: Mapping[str, Any] = field(
        default_factory=dict
    )  # steps, loss, seconds, as the run's report has them
    evaluation: Mapping[str, Any] = field(default_factory=dict)  # without the answers


def build_manifest(
    origin: Origin, config: Mapping[str, Any], num_parameters: int, files: Mapping[str, bytes]
) -> dict[str, Any]:
    """The manifest of a package with these files. Holds no path of the machine."""
    recipe = origin.recipe
    system = recipe.system
    return {
        "schema": SCHEMA,
        "tenant": recipe.tenant,
        "name": recipe.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"loraplex": version("loraplex"), **_library_versions()},
        "base": _base(origin),
        "system": system,
        "system_sha256": None if system is None else hashlib.sha256(system.encode()).hexdigest(),
        "data": _data(origin),
        "recipe_sha256": recipe.sha256(),
        "resolved": portable_recipe(origin.resolved),
        "lora": {
            "rank": config["r"],
            "alpha": config["lora_alpha"],
            "targets": config["target_modules"],
            "num_parameters": num_parameters,
        },
        "training": {**origin.training, "seed": recipe.train.seed},
        "metrics": dict(origin.evaluation),
        "gate": None,  # the gate writes its verdict here
        "files": file_hashes(files),
    }


def base_id(recipe: Recipe) -> str:
    """What to call the base: an id as it was given, of a folder its last name only."""
    named = recipe.base.model
    if named is None:
        return DEFAULT_BASE_ID
    return Path(named).name if Path(named).is_dir() or Path(named).is_absolute() else named


def portable_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON values, without absolute paths."""
    content: dict[str, Any] = _without_absolute_paths(recipe.model_dump(mode="json"))
    content["base"]["model"] = base_id(recipe)
    return content


def file_hashes(files: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256, hex, by file name."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}


def licences(recipe: Recipe) -> str:
    """LICENCES.md: of the base and of every source, with the attribution that it asks for."""
    lines = ["# Licences", "", f"- base `{base_id(recipe)}`: {recipe.base.licence or 'not stated'}"]
    for source in _sources(recipe):
        attribution = f", {source['attribution']}" if source["attribution"] else ""
        lines.append(f"- data `{source['path']}`: {source['licence'] or 'not stated'}{attribution}")
    if recipe.data.general.path == "bundled":
        lines.append("- general conversations mixed in: Apache-2.0, shipped with Loraplex")
    return "\n".join(lines) + "\n"


def _base(origin: Origin) -> dict[str, Any]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(origin.base_folder, local_files_only=True)
    return {
        "id": base_id(origin.recipe),
        "licence": origin.recipe.base.licence,
        "fingerprint": fingerprint(origin.base_folder),
        "template_sha256": template_hash(origin.base_folder),
        "tokenizer_sha256": tokenizer_hash(origin.base_folder),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "trained_on": _trained_on(origin),
        "allowed_serving": sorted(
            {str(origin.evaluation[key]) for key in ("precision",) if key in origin.evaluation}
        ),
    }


def _trained_on(origin: Origin) -> dict[str, Any]:
    """How the frozen base was held. Quantized bases are dequantized block by block to the compute dtype."""
    plan = origin.plan
    if not plan:
        return {"method": origin.recipe.method}
    described = {key: plan.get(key) for key in ("method", "compute", "device", "unquantized")}
    if str(plan.get("method", "")).startswith("qlora"):
        quant = origin.resolved.quant
        described |= {"quant": quant.type, "double_quant": plan.get("double_quant"), "block_size": 64}
    return described


def _data(origin: Origin) -> dict[str, Any]:
    described: dict[str, Any] = {"sources": _sources(origin.recipe)}
    if origin.data is None:
        return described
    report = origin.data.report
    stages = sorted({row.stage for row in origin.data.train})
    return {
        **described,
        "sha256": origin.data.sha256,
        "num_train": len(origin.data.train),
        "num_val": len(origin.data.val),
        "train_by_stage": {stage: sum(r.stage == stage for r in origin.data.train) for stage in stages},
        "personal_data": {
            "action": report.pii.action,
            "rows": report.pii.rows,
            "by_kind": report.pii.by_kind,
        },
    }


def _sources(recipe: Recipe) -> list[dict[str, Any]]:
    named = [*recipe.data.sources, *(s for stage in recipe.stages for s in stage.sources or ())]
    sources: Sequence[dict[str, Any]] = [
        {"path": _relative(s.path), "licence": s.licence, "attribution": s.attribution} for s in named
    ]
    return list(sources)


def _without_absolute_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_absolute_paths(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_absolute_paths(entry) for entry in value]
    return _relative(value) if isinstance(value, str) else value


def _relative(text: str) -> str:
    """Of an absolute path its last name only."""
    return Path(text).name if text.startswith(("/", "~")) and len(text) > 1 and " " not in text else text


def _library_versions() -> dict[str, str]:
    return {name: version(name) for name in _LIBRARIES}
