"""Reads and checks the header of a safetensors file within budgets, before anything of its size is
allocated.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, BinaryIO

from loraplex_adapters.errors import AdapterInvalidError
from loraplex_adapters.strict_json import parse_object

DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_LENGTH_BYTES = 8  # the file begins with the header's length, little endian
_MAX_NAME_CHARACTERS = 256
_METADATA_ENTRIES = 1000  # that are never too many
_MAX_DIMENSION = 2**31 - 1


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies and what it is."""

    shape: tuple[int, ...]
    dtype: str  # a key of DTYPE_BYTES
    begin: int  # first byte, counted from the end of the header
    num_bytes: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """A header whose tensors tile the rest of the file without gap or overlap."""

    tensors: dict[str, TensorInfo]
    data_offset: int  # first byte of the data in the file
    data_bytes: int


def read_header(file: BinaryIO, max_bytes: int, max_header_bytes: int, max_tensors: int) -> SafetensorsHeader:
    """Read from the start of `file`. Raises AdapterInvalidError for anything malformed or over a budget."""
    file_bytes = os.fstat(file.fileno()).st_size
    if file_bytes > max_bytes:
        raise _invalid(f"has {file_bytes} bytes, above the limit of {max_bytes}")
    header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    data_offset = _LENGTH_BYTES + header_bytes
    if header_bytes > max_header_bytes:
        raise _invalid(f"has a header of {header_bytes} bytes, above the limit of {max_header_bytes}")
    raw = file.read(header_bytes)
    if file_bytes < _LENGTH_BYTES or len(raw) != header_bytes:
        raise _invalid("ends inside its header")
    _check_worth_reading(raw, max_tensors)
    entries = parse_object(raw, "the safetensors header")
    _check_metadata(entries.pop("__metadata__", {}))
    if not 1 <= len(entries) <= max_tensors:
        raise _invalid(f"has {len(entries)} tensors; 1 to {max_tensors} are allowed")
    tensors = {name: _read_entry(name, entry) for name, entry in entries.items()}
    _check_tiling(tensors, file_bytes - data_offset)
    return SafetensorsHeader(tensors, data_offset, file_bytes - data_offset)


def _check_worth_reading(raw: bytes, max_tensors: int) -> None:
    """Refuse at a glance what would take long to read: a tensor takes one brace and four colons, in whatever way its
    strings are written, and metadata get as many.
    """
    allowed = 2 * max(max_tensors, _METADATA_ENTRIES)
    if raw.count(b"{") > allowed or raw.count(b":") > 4 * allowed:
        raise _invalid(f"has far more than {max_tensors} tensors, as many as are allowed")


def _read_entry(name: str, entry: Any) -> TensorInfo:
    if not name.isprintable() or len(name) > _MAX_NAME_CHARACTERS:
        raise _invalid("has a tensor with an unusable name")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _invalid(f"describes tensor {name!r} in an unknown way")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise _invalid(f"has {name!r} as {str(dtype)[:20]}; only {', '.join(DTYPE_BYTES)} are served")
    if not _are_integers(shape, 1, _MAX_DIMENSION) or not 1 <= len(shape) <= 4:
        raise _invalid(f"gives {name!r} a malformed shape")
    if not _are_integers(offsets, 0, 2**62) or len(offsets) != 2:
        raise _invalid(f"gives {name!r} malformed offsets")
    num_bytes = math.prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != num_bytes:
        raise _invalid(f"gives {name!r} {offsets[1] - offsets[0]} bytes, but its shape takes {num_bytes}")
    return TensorInfo(tuple(shape), dtype, offsets[0], num_bytes)


def _are_integers(values: Any, low: int, high: int) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int) and not isinstance(value, bool) and low <= value <= high for value in values
    )


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _invalid("has malformed metadata")


def _check_tiling(tensors: dict[str, TensorInfo], data_bytes: int) -> None:
    """Bytes outside all tensors could smuggle another file; bytes in two tensors make sizes lie."""
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].begin):
        if tensor.begin != end:
            raise _invalid(f"has a gap or overlap before {name!r}")
        end += tensor.num_bytes
    if end != data_bytes:
        raise _invalid(f"has {data_bytes} bytes of data, but its tensors take {end}")


def _invalid(what: str) -> AdapterInvalidError:
    return AdapterInvalidError(f"adapter_model.safetensors {what}")
