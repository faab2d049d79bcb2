from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraplex_adapters.errors import AdapterIncompatibleError, AdapterInvalidError
from loraplex_adapters.package import WEIGHTS_FILE, PackageLimits, read_package
from loraplex_server.base.fingerprint import base_spec, template_hash, tokenizer_hash
from loraplex_trainer.errors import RunFolderError, RunIncompleteError, TrainingDivergedError
from loraplex_trainer.packaging.package import package_run
from loraplex_trainer.packaging.validate import validate
from loraplex_trainer.recipe.document import Recipe
from loraplex_trainer.train.run_folder import RunFolder
from tests.support.bad_packages import FOREIGN, INVALID

from ..conftest import SYSTEM

CONFIG, MANIFEST = "adapter_config.json", "manifest.json"


def manifest_of(package: Path) -> Any:
    return json.loads((package / MANIFEST).read_text(encoding="utf-8"))


def spoil(run: RunFolder, change: Any) -> None:
    tensors = load_file(run.best / WEIGHTS_FILE)
    save_file(change(tensors), run.best / WEIGHTS_FILE)


def test_a_package_holds_whitelisted_files_alone(package: Path, run: RunFolder) -> None:
    assert sorted(path.name for path in package.iterdir()) == [
        "LICENCES.md",
        CONFIG,
        WEIGHTS_FILE,
        MANIFEST,
        "report.md",
        "samples.jsonl",
    ]
    assert any(
        path.suffix in (".bin", ".pt", ".pth") for path in run.path.rglob("*")
    )  # trainers leave pickles


def test_no_file_of_a_package_names_a_path_of_this_machine(
    package: Path, run: RunFolder, tiny_base: Path
) -> None:
    for path in package.iterdir():
        content = path.read_bytes()
        for known in (run.path, tiny_base, Path.home(), Path("/tmp")):
            assert str(known).encode() not in content, path.name


def test_the_manifest_lists_every_other_file_by_its_hash(package: Path) -> None:
    listed = manifest_of(package)["files"]

    assert {*listed, MANIFEST} == {path.name for path in package.iterdir()}
    for name, digest in listed.items():
        assert hashlib.sha256((package / name).read_bytes()).hexdigest() == digest


def test_the_manifest_says_on_what_from_what_and_how_it_was_made(
    package: Path, recipe: Recipe, tiny_base: Path
) -> None:
    manifest = manifest_of(package)

    base = manifest["base"]
    assert base["fingerprint"] == base_spec(tiny_base).fingerprint
    assert base["template_sha256"] == template_hash(tiny_base)
    assert base["tokenizer_sha256"] == tokenizer_hash(tiny_base)
    assert (base["eos_token_id"], base["licence"]) == (2, "Apache-2.0")
    assert base["trained_on"]["method"] == "lora-fp32"
    assert base["trained_on"]["compute"] == "fp32"
    assert (manifest["tenant"], manifest["name"]) == ("paint", "colours")
    assert manifest["system"] == SYSTEM
    assert manifest["system_sha256"] == hashlib.sha256(SYSTEM.encode()).hexdigest()
    assert manifest["recipe_sha256"] == recipe.sha256()
    assert manifest["resolved"]["train"]["learning_rate"] == 0.015
    assert manifest["data"]["num_train"] == 8
    assert re.fullmatch("[0-9a-f]{64}", manifest["data"]["sha256"])
    assert manifest["data"]["sources"] == [
        {"path": "train.jsonl", "licence": "CC-BY-4.0", "attribution": "A. Painter"}
    ]
    assert manifest["lora"] == {
        "rank": 8,
        "alpha": 16,
        "targets": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
        "num_parameters": sum(t.numel() for t in load_file(package / WEIGHTS_FILE).values()),
    }
    assert manifest["training"]["seed"] == 7
    assert manifest["training"]["num_steps"] > 0
    assert {"torch", "peft", "trl", "loraplex"} <= manifest["versions"].keys()


def test_licences_and_attribution_of_every_source_are_in_the_package(package: Path) -> None:
    text = (package / "LICENCES.md").read_text()

    assert "CC-BY-4.0, A. Painter" in text
    assert "Apache-2.0" in text


def test_weights_are_those_of_the_best_checkpoint_in_the_dtype_of_training(
    package: Path, run: RunFolder
) -> None:
    best, stored = load_file(run.best / WEIGHTS_FILE), load_file(package / WEIGHTS_FILE)

    assert best.keys() == stored.keys()
    assert all(torch.equal(best[key].float(), stored[key]) for key in best)


def test_weights_of_a_training_in_bf16_are_stored_in_bf16(own_run: RunFolder, tiny_base: Path) -> None:
    plan = json.loads(own_run.plan.read_text())
    own_run.plan.write_text(
        json.dumps({**plan, "compute": "bf16", "method": "qlora-nf4", "double_quant": True})
    )

    package = package_run(own_run, tiny_base)

    assert {tensor.dtype for tensor in load_file(package / WEIGHTS_FILE).values()} == {torch.bfloat16}
    trained_on = manifest_of(package)["base"]["trained_on"]
    assert (trained_on["quant"], trained_on["double_quant"], trained_on["block_size"]) == ("nf4", True, 64)


def test_full_module_paths_become_the_last_names(own_run: RunFolder, tiny_base: Path) -> None:
    config = json.loads((own_run.best / CONFIG).read_text())
    paths = [f"model.layers.{n}.self_attn.{m}_proj" for n in (0, 1) for m in "qkvo"]
    paths += [f"model.layers.{n}.mlp.{m}_proj" for n in (0, 1) for m in ("gate", "up", "down")]
    (own_run.best / CONFIG).write_text(json.dumps({**config, "target_modules": paths}))

    package = package_run(own_run, tiny_base)

    written = json.loads((package / CONFIG).read_text())
    assert written["target_modules"] == [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]
    assert set(written) <= {
        "base_model_name_or_path", "bias", "inference_mode", "lora_alpha", "lora_dropout", "peft_type", "r",
        "target_modules", "task_type", "use_rslora",
    }  # fmt: skip


def test_packaging_again_gives_the_same_digest_and_replaces_the_folder(
    package: Path, run: RunFolder, tiny_base: Path
) -> None:
    digest = read_package(package).digest
    (package / "stray.txt").write_text("left behind")

    package_run(run, tiny_base, package)

    assert read_package(package).digest == digest
    assert not (package / "stray.txt").exists()


@pytest.mark.parametrize("status", ["running", "paused", "failed", "cancelled"])
def test_only_a_finished_run_is_packaged(own_run: RunFolder, tiny_base: Path, status: Any) -> None:
    own_run.change_state(status=status)

    with pytest.raises(RunIncompleteError, match="--resume"):
        package_run(own_run, tiny_base)
    assert not own_run.package.exists()


def test_a_folder_without_a_run_is_not_packaged(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError):
        package_run(RunFolder(tmp_path / "nothing"), tiny_base)


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "infinity"])
def test_weights_that_are_not_finite_make_no_package(
    own_run: RunFolder, tiny_base: Path, value: float
) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        next(iter(tensors.values()))[0, 0] = value
        return tensors

    spoil(own_run, poison)

    with pytest.raises(TrainingDivergedError, match="learning_rate"):
        package_run(own_run, tiny_base)
    assert not own_run.package.exists()


def test_a_trained_embedding_makes_no_package(own_run: RunFolder, tiny_base: Path) -> None:
    extra = {"base_model.model.lm_head.weight": torch.zeros(4, 4)}
    spoil(own_run, lambda tensors: {**tensors, **extra})

    with pytest.raises(AdapterInvalidError, match="lm_head"):
        package_run(own_run, tiny_base)


def test_a_failing_package_leaves_the_earlier_one_as_it_was(own_run: RunFolder, tiny_base: Path) -> None:
    package_run(own_run, tiny_base)
    before = {path.name: path.read_bytes() for path in own_run.package.iterdir()}
    spoil(own_run, lambda tensors: {key: torch.full_like(t, float("nan")) for key, t in tensors.items()})

    with pytest.raises(TrainingDivergedError):
        package_run(own_run, tiny_base)

    assert {path.name: path.read_bytes() for path in own_run.package.iterdir()} == before
    assert not [path for path in own_run.path.iterdir() if path.name.endswith(".new")]


def test_a_sound_package_is_admitted_by_the_servers_own_check(package: Path, tiny_base: Path) -> None:
    admitted = validate(package, tiny_base)

    assert admitted.digest == read_package(package).digest
    assert admitted.served_module_count == 2 * 7
    assert admitted.manifest is not None
    assert admitted.manifest.companions.keys() == {"LICENCES.md", "report.md", "samples.jsonl"}


# One rewrites another package's text; two take seconds and are the server's own tests.
_NOT_HERE = {"an_alpha_that_is_no_number", "a_million_tensors", "as_many_tensors_as_a_header_holds"}


@pytest.mark.parametrize(
    "spoil_package",
    [
        pytest.param(each, id=each.__name__)
        for group in (*INVALID.values(), FOREIGN)
        for each in group
        if each.__name__ not in _NOT_HERE
    ],
)
def test_whatever_the_server_refuses_the_trainer_refuses_too(
    package: Path, tiny_base: Path, spoil_package: Any
) -> None:
    spoil_package(package)

    with pytest.raises((AdapterInvalidError, AdapterIncompatibleError)):
        validate(package, tiny_base)


def test_a_rank_above_the_servers_is_refused(package: Path, tiny_base: Path) -> None:
    with pytest.raises(AdapterInvalidError, match="rank 8 is above"):
        validate(package, tiny_base, PackageLimits(max_rank=4))


@pytest.mark.parametrize("name", ["report.md", "samples.jsonl"])
def test_a_changed_report_is_refused_and_a_missing_one_is_not(
    package: Path, tiny_base: Path, name: str
) -> None:
    original = (package / name).read_bytes()
    (package / name).write_bytes(original + b"better")
    with pytest.raises(AdapterInvalidError, match=re.escape(name)):
        validate(package, tiny_base)

    (package / name).unlink()
    assert validate(package, tiny_base).digest


def test_a_file_that_the_manifest_does_not_list_is_refused(package: Path, tiny_base: Path) -> None:
    (package / "optimizer.pt").write_bytes(b"state")

    with pytest.raises(AdapterInvalidError, match=r"optimizer\.pt"):
        validate(package, tiny_base)


def test_a_package_without_a_manifest_is_refused(package: Path, tiny_base: Path) -> None:
    (package / MANIFEST).unlink()

    with pytest.raises(AdapterInvalidError, match="no manifest"):
        validate(package, tiny_base)
