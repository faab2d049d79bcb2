"""Merges an adapter into its base: one model that needs no adapter, and can hold no other.

Only into 16 or 32 bits. What is rounded to 4 bits again after the merge loses most of what the adapter added, since its
changes are smaller than a step of the rounding. An adapter that was trained over 4 bits has learned with the rounded
weights; it is merged into those, restored to 16 bits, and only where that is asked for.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from loraplex_adapters.errors import AdapterIncompatibleError
from loraplex_adapters.manifest import MANIFEST_FILE, check_files, read_manifest
from loraplex_adapters.package import read_package
from loraplex_server.base.fingerprint import fingerprint
from loraplex_server.model.checkpoint import weight_files
from loraplex_trainer.errors import MergeRefusedError
from loraplex_trainer.libraries import prepare_libraries
from loraplex_trainer.packaging.export import canonical_json
from loraplex_trainer.packaging.validate import validate

MergedDtype = Literal["bf16", "fp32"]
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class MergeReport:
    """A merged model, as its manifest tells of it."""

    dtype: MergedDtype
    base_fingerprint: str
    adapter_digest: str
    fingerprint: str  # of the merged model, as of any base
    files: dict[str, str]  # of weights, name -> SHA-256, hex


def merge(
    package: Path,
    base_folder: Path,
    output: Path,
    *,
    dtype: MergedDtype = "bf16",
    dequantize: bool = False,
) -> MergeReport:
    """Write the merged model, tokenizer and manifest into `output`, which must not exist yet.

    dequantize  allow a base in 4 or 8 bits, stored so or trained on so; its rounded weights are restored to 16 or 32 bits

    Raises MergeRefusedError, AdapterInvalidError, AdapterIncompatibleError.
    """
    if output.exists():
        raise MergeRefusedError(f"'{output.name}' exists already; choose another folder for the merged model")
    bits, trained_on = stored_bits(base_folder), _trained_on(package)
    is_rounded = bits is not None or "quant" in trained_on
    if is_rounded and not dequantize:
        what = (
            f"the base is stored in {bits} bits" if bits else "the adapter was trained over a base in 4 bits"
        )
        raise MergeRefusedError(
            f"{what}, and merging into so few erases most of what the adapter learned; serve the adapter beside the "
            "base, or merge it into the rounded weights, restored to 16 bits, with --dequantize"
        )
    digest = _proved(package, base_folder, is_stored_rounded=bits is not None)
    prepare_libraries()
    scratch = output.with_name(f".{output.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        _write_merged(package, _base_model(base_folder, bits, trained_on), base_folder, scratch, dtype)
        report = MergeReport(
            dtype=dtype,
            base_fingerprint=fingerprint(base_folder),
            adapter_digest=digest,
            fingerprint=fingerprint(scratch),
            files={path.name: _sha256(path) for path in weight_files(scratch)},
        )
        (scratch / MANIFEST_FILE).write_bytes(canonical_json({"schema": 1, "merged": asdict(report)}))
        scratch.replace(output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return report


def stored_bits(base_folder: Path) -> int | None:
    """Bits of a base that is stored quantized; None: it is not."""
    config = json.loads((base_folder / "config.json").read_text(encoding="utf-8"))
    quantization: dict[str, Any] = config.get("quantization_config") or {}
    if not quantization:
        return None
    return 8 if quantization.get("load_in_8bit") or quantization.get("bits") == 8 else 4


def _trained_on(package: Path) -> dict[str, Any]:
    """How the base was held in training, as the manifest tells; empty where it does not."""
    try:
        manifest = json.loads((package / MANIFEST_FILE).read_bytes())
        found = manifest["base"]["trained_on"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _proved(package: Path, base_folder: Path, *, is_stored_rounded: bool) -> str:
    """The adapter's digest, once it is known to be sound and of this base."""
    if not is_stored_rounded:
        return validate(package, base_folder).digest
    # No server serves such a base, so its admission knows none.
    digest = read_package(package).digest
    manifest = read_manifest(package)
    if manifest is None or manifest.base_fingerprint != fingerprint(base_folder):
        raise AdapterIncompatibleError("the adapter was trained on another base; merge it into its own")
    check_files(manifest, package)
    return digest


def _base_model(base_folder: Path, bits: int | None, trained_on: dict[str, Any]) -> Any:
    """The base in fp32, so that the sum is rounded once, at the end; with rounded weights where those are meant."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: dict[str, Any] = {"dtype": torch.float32, "local_files_only": True}
    if bits is None and "quant" in trained_on:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=trained_on["quant"],
            bnb_4bit_use_double_quant=bool(trained_on.get("double_quant")),
            bnb_4bit_compute_dtype=torch.float32,
            llm_int8_skip_modules=sorted({*(trained_on.get("unquantized") or ()), "lm_head"}),
        )
        options["device_map"] = {"": "cpu"}
    model = AutoModelForCausalLM.from_pretrained(base_folder, **options)
    return model.dequantize().to(torch.float32) if bits is not None or "quant" in trained_on else model


def _write_merged(package: Path, model: Any, base_folder: Path, folder: Path, dtype: MergedDtype) -> None:
    import torch
    from peft import PeftModel

    merged = PeftModel.from_pretrained(model, str(package), torch_device="cpu").merge_and_unload(
        safe_merge=True
    )
    merged.to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    # Its own format is that of any base; what it was read from may have been quantized.
    merged.save_pretrained(folder, save_original_format=False)
    for name in _TOKENIZER_FILES:
        if (base_folder / name).is_file():
            shutil.copyfile(base_folder / name, folder / name)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
