"""Any number of adapters that differ in their weights, made from one."""

from __future__ import annotations

import shutil
from pathlib import Path

from loraplex_adapters.package import WEIGHTS_FILE, read_package
from loraplex_adapters.peft_config import CONFIG_FILE

_HEADER_LENGTH_BYTES = 8
_ELEMENT_BYTES = {"BF16": 2, "F16": 2, "F32": 4}


def write_variant(package: Path, folder: Path, index: int) -> Path:
    """A PEFT folder with the weights of `package`, but for the lowest bit of its element number `index`.

    Variants of different index have different digests; their answers are as good as the package's.
    """
    contents = read_package(package)
    size = max(_ELEMENT_BYTES[tensor.dtype] for tensor in contents.tensors.values())
    if (index + 1) * size > contents.size_bytes:
        raise ValueError(f"the package has {contents.size_bytes // size} elements, no number {index}")
    target = folder / f"variant-{index:04d}"
    target.mkdir(parents=True)
    shutil.copyfile(package / CONFIG_FILE, target / CONFIG_FILE)
    weights = bytearray((package / WEIGHTS_FILE).read_bytes())
    header_bytes = int.from_bytes(weights[:_HEADER_LENGTH_BYTES], "little")
    weights[_HEADER_LENGTH_BYTES + header_bytes + index * size] ^= 1  # little-endian: the lowest bit
    (target / WEIGHTS_FILE).write_bytes(weights)
    return target
