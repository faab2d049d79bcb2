"""Any number of adapters that differ in their weights, made from one package without a tensor library."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from loraplex_loadtest.errors import ScenarioInvalidError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_LENGTH_BYTES = 8
_ELEMENT_BYTES = {"BF16": 2, "F16": 2, "F32": 4}


def write_variant(package: Path, folder: Path, index: int) -> Path:
    """A folder with the weights of a PEFT package, but for the lowest bit of element number `index`.

    Variants of different index have different digests and answer alike. Raises ScenarioInvalidError if `package` is
    none, or has no such element.
    """
    try:
        config = (package / CONFIG_FILE).read_bytes()
        weights = bytearray((package / WEIGHTS_FILE).read_bytes())
        header_bytes = int.from_bytes(weights[:_LENGTH_BYTES], "little")
        header = json.loads(weights[_LENGTH_BYTES : _LENGTH_BYTES + header_bytes])
        size = max(
            _ELEMENT_BYTES[tensor["dtype"]] for name, tensor in header.items() if name != "__metadata__"
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ScenarioInvalidError(f"{package.name} is no PEFT package with float weights: {error}") from None
    place = _LENGTH_BYTES + header_bytes + index * size  # little-endian: the lowest bit comes first
    if place + size > len(weights):
        raise ScenarioInvalidError(f"{package.name} has too few weights for variant {index}")
    weights[place] ^= 1
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / CONFIG_FILE).write_bytes(config)
    (folder / WEIGHTS_FILE).write_bytes(weights)
    return folder
