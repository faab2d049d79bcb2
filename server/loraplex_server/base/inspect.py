"""What a base is and how much memory it takes, from its configuration and headers; no weights are loaded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from loraplex_server.base.chat_template import read_chat_template
from loraplex_server.base.fetch import DEFAULT_BASE_ID, default_base_folder
from loraplex_server.base.fingerprint import fingerprint
from loraplex_server.model.checkpoint import Checkpoint
from loraplex_server.model.config import DecoderConfig
from loraplex_server.model.footprint import decoder_bytes
from loraplex_server.model.numerics import QUANTIZATIONS, resolve_numerics
from loraplex_server.model.tensor_names import expected_tensors, parameter_count


@dataclass(frozen=True, slots=True)
class BaseReport:
    """One base model. Sizes are of the device that was asked for."""

    base_id: str  # what to call it: the default base's id, else the name of the folder
    folder: Path
    architecture: str
    num_layers: int
    parameter_count: int  # a tied table counts once
    bytes_by_quantization: dict[str, int]  # resident weights: fp32, bf16, int8, nf4
    auto_quantization: str  # what `auto` takes on the device
    auto_reason: str  # why, in words
    fingerprint: str  # SHA-256, hex
    max_context_tokens: int
    chat_template_sha256: str | None  # hex; None: the base has no template


def inspect_base(folder: Path, device: str = "auto", cache_dir: Path | None = None) -> BaseReport:
    """Report on a base folder. `device` is cpu, cuda or auto.

    Raises BaseModelError when the folder is incomplete, or its weights and its config.json do not belong together.
    """
    config = DecoderConfig.from_folder(folder)
    Checkpoint(folder).check(expected_tensors(config))
    template = read_chat_template(folder)
    automatic = resolve_numerics("auto", device)
    return BaseReport(
        base_id=DEFAULT_BASE_ID
        if folder.resolve() == default_base_folder(cache_dir)
        else folder.resolve().name,
        folder=folder,
        architecture=config.architecture,
        num_layers=config.num_layers,
        parameter_count=parameter_count(config),
        bytes_by_quantization={
            name: decoder_bytes(config, resolve_numerics(name, device)) for name in QUANTIZATIONS
        },
        auto_quantization=automatic.quantization,
        auto_reason=automatic.reason,
        fingerprint=fingerprint(folder, cache_dir),
        max_context_tokens=config.max_position_embeddings,
        chat_template_sha256=None if template is None else hashlib.sha256(template.encode()).hexdigest(),
    )
