"""Merges an adapter into its base: one model that needs no adapter, and can hold no other.

Only into 16 or 32 bits. What is rounded to 4 bits again after the merge loses most of what the adapter added, since its
changes are smaller than a step of the rounding.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from loraplex_adapters.manifest import MANIFEST_FILE
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

    dequantize  allow a base that is stored in 4 or 8 bits; the result has 16 or 32

    Raises MergeRefusedError, AdapterInvalidError, AdapterIncompatibleError.
    """
    if output.exists():
        raise MergeRefusedError(f"'{output.name}' exists already; choose another folder for the merged model")
    bits = stored_bits(base_folder)
    if bits is not None and not dequantize:
        raise MergeRefusedError(
            f"the base is stored in {bits} bits, and merging into so few erases most of what the adapter learned; "
            "serve the adapter beside the base, merge into a 16-bit base, or get 16 bits out with --dequantize"
        )
    admitted = validate(package, base_folder)
    prepare_libraries()
    scratch = output.with_name(f".{output.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        _write_merged(package, base_folder, scratch, dtype, is_quantized=bits is not None)
        report = MergeReport(
            dtype=dtype,
            base_fingerprint=fingerprint(base_folder),
            adapter_digest=admitted.digest,
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


def _write_merged(
    package: Path, base_folder: Path, folder: Path, dtype: MergedDtype, *, is_quantized: bool
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    # In fp32, so that the sum is rounded once, at the end.
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32, local_files_only=True)
    if is_quantized:
        model = model.dequantize().to(torch.float32)
    merged = PeftModel.from_pretrained(model, str(package), torch_device="cpu").merge_and_unload(
        safe_merge=True
    )
    merged.to(torch.bfloat16 if dtype == "bf16" else torch.float32).save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        if (base_folder / name).is_file():
            shutil.copyfile(base_folder / name, folder / name)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
