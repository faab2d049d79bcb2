"""Writes the package of a finished run: whitelisted files, no pickle, no path of the machine it was made on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraplex_adapters.manifest import MANIFEST_FILE
from loraplex_adapters.package import WEIGHTS_FILE
from loraplex_adapters.peft_config import CONFIG_FILE
from loraplex_trainer.errors import RunIncompleteError
from loraplex_trainer.packaging.export import StoredDtype, canonical_json, export_config, export_weights
from loraplex_trainer.packaging.manifest import Origin, base_id, build_manifest, licences
from loraplex_trainer.packaging.readable import package_page
from loraplex_trainer.packaging.validate import validate
from loraplex_trainer.recipe.document import read_recipe

if TYPE_CHECKING:
    from loraplex_trainer.train.run_folder import RunFolder

EVAL_FILE, SAMPLES_FILE, REPORT_FILE, LICENCES_FILE = "eval.json", "samples.jsonl", "report.md", "LICENCES.md"


def package_run(run: RunFolder, base_folder: Path, output: Path | None = None) -> Path:
    """Package the best adapter of a finished run; returns the folder, which replaces an earlier one as a whole.

    output  None: the run folder's own `package`

    Raises RunIncompleteError, AdapterInvalidError, AdapterIncompatibleError, TrainingDivergedError,
    TrainingStorageError.
    """
    from loraplex_trainer.data.built import load_built
    from loraplex_trainer.judge.questions import built_data
    from loraplex_trainer.train.run_folder import storage_faults

    adapter = finished_adapter(run)
    evaluation = _read_json(run.eval)
    recipe = read_recipe(run.recipe)
    built = built_data(run, recipe)
    origin = Origin(
        recipe=recipe,
        resolved=read_recipe(run.resolved),
        base_folder=base_folder,
        plan=_read_json(run.plan),
        data=None if built is None else load_built(built),
        training=_facts_of_training(_read_json(run.report)),
        evaluation={key: value for key, value in evaluation.items() if key != "answers"},
    )
    companions = {
        EVAL_FILE: run.eval.read_bytes() if run.eval.is_file() else b"",
        SAMPLES_FILE: run.samples.read_bytes() if run.samples.is_file() else b"",
    }
    with storage_faults():
        return write_package(output or run.package, adapter, origin, companions)


def write_package(
    folder: Path, peft_folder: Path, origin: Origin, companions: Mapping[str, bytes] | None = None
) -> Path:
    """Export the adapter in `peft_folder`, prove it as the server will, and put it in the place of `folder`.

    companions  further files by name; empty ones are left out

    Raises AdapterInvalidError, AdapterIncompatibleError, TrainingDivergedError; then `folder` is as it was.
    """
    weights, num_parameters = export_weights(peft_folder, _stored_dtype(origin))
    config = export_config(peft_folder, base_id(origin.recipe))
    files = {CONFIG_FILE: canonical_json(config), WEIGHTS_FILE: weights}
    files |= {name: content for name, content in (companions or {}).items() if content}
    files[LICENCES_FILE] = licences(origin.recipe).encode()
    draft = build_manifest(origin, config, num_parameters, files)
    files[REPORT_FILE] = package_page(draft).encode()
    files[MANIFEST_FILE] = canonical_json(build_manifest(origin, config, num_parameters, files))
    scratch = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        for name, content in files.items():
            (scratch / name).write_bytes(content)
        validate(scratch, origin.base_folder)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def finished_adapter(run: RunFolder) -> Path:
    """PEFT folder of the run's best adapter. Raises RunIncompleteError where the training has not come to its end."""
    status = run.read_state().status
    if status != "finished" or not (run.best / WEIGHTS_FILE).is_file():
        raise RunIncompleteError(
            f"the run is {status}, and only a finished one has an adapter to judge or package; go on with "
            "`loraplex train run --resume`"
        )
    return run.best


def _stored_dtype(origin: Origin) -> StoredDtype:
    """The dtype of the products in training: what the weights' lower digits never mattered in."""
    compute = str(origin.plan.get("compute", "bf16"))
    return "fp32" if compute == "fp32" else "bf16"


def _facts_of_training(report: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and words of the run's report, without its curves."""
    return {
        key: value
        for key, value in report.items()
        if isinstance(value, int | float | bool) or (isinstance(value, str) and "/" not in value)
    }


def _read_json(path: Path) -> dict[str, Any]:
    """Empty where there is no file."""
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
