"""From PEFT's folder to the two files that are served: A and B matrices, and the fields that decide the mathematics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loraplex_adapters.errors import AdapterInvalidError
from loraplex_adapters.package import LORA_KEY, WEIGHTS_FILE
from loraplex_adapters.peft_config import CONFIG_FILE, parse_peft_config
from loraplex_trainer.errors import TrainingDivergedError

if TYPE_CHECKING:
    from torch import Tensor

StoredDtype = Literal["bf16", "fp16", "fp32"]
_SERVED_FIELDS = ("lora_alpha", "lora_dropout", "r", "use_rslora")


def export_weights(peft_folder: Path, dtype: StoredDtype) -> tuple[bytes, int]:
    """Content of `adapter_model.safetensors`, and its number of weights. The same tensors give the same bytes.

    Raises AdapterInvalidError for a tensor that is no A or B matrix, TrainingDivergedError for one that is not finite.
    """
    from safetensors.torch import load_file, save

    tensors = load_file(peft_folder / WEIGHTS_FILE)
    foreign = sorted(key for key in tensors if LORA_KEY.fullmatch(key) is None)
    if foreign:
        raise AdapterInvalidError(
            f"{WEIGHTS_FILE}: {foreign[0][:120]!r} is not the A or B matrix of a LoRA module; train without "
            "resized embeddings and modules_to_save"
        )
    stored = {key: _stored(key, tensor, dtype) for key, tensor in sorted(tensors.items())}
    content: bytes = save(stored, metadata={"format": "pt"})
    return content, sum(tensor.numel() for tensor in stored.values())


def export_config(peft_folder: Path, base_id: str) -> dict[str, Any]:
    """Content of `adapter_config.json`: what every PEFT reader knows, target modules by their last name.

    Raises AdapterInvalidError for a feature that is not served.
    """
    raw = (peft_folder / CONFIG_FILE).read_bytes()
    parse_peft_config(raw)
    config = json.loads(raw)
    targets = config["target_modules"]
    if isinstance(targets, str):
        raise AdapterInvalidError(f"{CONFIG_FILE}: target_modules must be a list of names, not {targets!r}")
    served = {field: config[field] for field in _SERVED_FIELDS}
    return {
        "base_model_name_or_path": base_id,
        "bias": "none",
        "inference_mode": True,
        "peft_type": "LORA",
        # PEFT may write the path of every single module; a name that stands for all of them is portable.
        "target_modules": sorted({name.rpartition(".")[2] for name in targets}),
        "task_type": "CAUSAL_LM",
        **served,
    }


def canonical_json(content: Any) -> bytes:
    """The same bytes for the same content."""
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _stored(key: str, tensor: Tensor, dtype: StoredDtype) -> Tensor:
    import torch

    wanted = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    stored = tensor.detach().to("cpu", wanted).contiguous()
    if not bool(torch.isfinite(stored).all()):
        raise TrainingDivergedError(f"{key} holds NaN or infinity; lower train.learning_rate")
    return stored
