"""Reads a PEFT folder as a stranger's: two files, bounded, no pickle, finite weights; and its digest."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from loraplex_adapters.errors import (
    AdapterInvalidError,
    NonFiniteWeightsError,
    UnsupportedFormatError,
    UnsupportedPeftFeatureError,
)
from loraplex_adapters.lora_settings import LoraSettings
from loraplex_adapters.peft_config import CONFIG_FILE, MAX_CONFIG_BYTES, parse_peft_config
from loraplex_adapters.safetensors_header import SafetensorsHeader, TensorInfo, read_header

WEIGHTS_FILE = "adapter_model.safetensors"
LORA_KEY = re.compile(r"base_model\.model\.(?P<path>[\w.]{1,160})\.lora_(?P<part>[AB])(\.default)?\.weight")
_PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
# What trainers leave beside an adapter. Never opened, and never taken for its weights by any reader.
_TRAINER_LEFTOVER = re.compile(
    r"training_args\.bin|(optimizer|scheduler|scaler)\.(pt|bin)|rng_state(_\d+)?\.pth"
)
_CHUNK_BYTES = 4 * 1024 * 1024
_DIGEST_DOMAIN = b"loraplex adapter package 1"


@dataclass(frozen=True, slots=True)
class PackageLimits:
    """Budgets of one package; exceeding any is an AdapterInvalidError."""

    max_bytes: int = 512 * 1024 * 1024  # of adapter_model.safetensors
    max_tensors: int = 4096
    max_rank: int = 256
    max_header_bytes: int = 4 * 1024 * 1024  # of the safetensors header

    def __post_init__(self) -> None:
        for field in ("max_bytes", "max_tensors", "max_rank", "max_header_bytes"):
            if getattr(self, field) < 1:
                raise ValueError(f"PackageLimits.{field} must be at least 1")


DEFAULT_LIMITS = PackageLimits()


@dataclass(frozen=True, slots=True)
class AdapterPackage:
    """A checked package. Sound in itself; whether it fits a base is for `compatibility.match_to_base`."""

    digest: str  # SHA-256, hex
    config: LoraSettings
    size_bytes: int  # of all tensors
    tensors: dict[str, TensorInfo]  # by key, as in the file
    folder: Path


def read_package(folder: Path, limits: PackageLimits = DEFAULT_LIMITS) -> AdapterPackage:
    """Check the PEFT folder completely and compute its digest. Reads every byte of the weights once.

    Only `adapter_config.json` and `adapter_model.safetensors` are opened, and both must be regular files
    that lie in the folder. Raises AdapterInvalidError, or the one of its subclasses that tells the kind.
    """
    refuse_pickles(folder)
    with open_package_file(folder, CONFIG_FILE) as file:
        config = parse_peft_config(file.read(MAX_CONFIG_BYTES + 1))
    if config.max_rank() > limits.max_rank:
        raise AdapterInvalidError(
            f"{CONFIG_FILE}: rank {config.max_rank()} is above the limit of {limits.max_rank}",
            "r" if config.rank > limits.max_rank else "rank_pattern",
        )
    try:
        with open_package_file(folder, WEIGHTS_FILE) as file:
            header = read_header(file, limits.max_bytes, limits.max_header_bytes, limits.max_tensors)
            _check_ranks(header, config)
            digest = _digest_and_check_finite(file, header, config)
    except OSError as error:
        raise AdapterInvalidError(f"{WEIGHTS_FILE} cannot be read: {error.strerror}") from error
    _check_library_agrees(folder / WEIGHTS_FILE, header)
    return AdapterPackage(digest, config, header.data_bytes, header.tensors, folder)


def refuse_pickles(folder: Path) -> None:
    """Raise AdapterInvalidError if `folder` is no readable folder, UnsupportedFormatError if it holds a file whose
    loading would run code.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise AdapterInvalidError(f"the adapter folder cannot be listed: {error.strerror}") from error
    except ValueError as error:
        raise AdapterInvalidError("the adapter folder's name is malformed") from error
    for name in names:
        if Path(name).suffix.lower() in _PICKLE_SUFFIXES and not _TRAINER_LEFTOVER.fullmatch(name):
            raise UnsupportedFormatError(
                f"{name[:80]!r} is a pickle file, which can run code when it is loaded; save the adapter as "
                f"{WEIGHTS_FILE} and remove it"
            )


def open_package_file(folder: Path, name: str) -> BufferedReader:
    """Open a file of the package for reading. Raises AdapterInvalidError unless it is a regular file in
    `folder`.
    """
    try:
        path = (folder / name).resolve(strict=True)
        if not path.is_relative_to(folder.resolve(strict=True)):
            raise AdapterInvalidError(f"{name} is a link to a place outside the adapter folder")
        # O_NONBLOCK: opening a named pipe would wait for its writer for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise AdapterInvalidError(f"the adapter folder has no {name}") from error
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # a loop of links is a RuntimeError up to Python 3.12
        raise AdapterInvalidError(f"{name} cannot be opened") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise AdapterInvalidError(f"{name} is not a regular file")
    return os.fdopen(descriptor, "rb")


def file_sha256(folder: Path, name: str) -> str:
    """SHA-256, hex, of one file of the package. Raises AdapterInvalidError as `open_package_file` does."""
    with open_package_file(folder, name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_ranks(header: SafetensorsHeader, config: LoraSettings) -> None:
    """Every tensor must be an A or B matrix with the rank that the configuration gives its module."""
    for key, tensor in header.tensors.items():
        match = LORA_KEY.fullmatch(key)
        if match is None or len(tensor.shape) != 2:
            raise _no_matrix(key)
        rank = tensor.shape[0] if match["part"] == "A" else tensor.shape[1]
        expected = config.rank_of(match["path"])
        if rank != expected:
            raise AdapterInvalidError(
                f"{WEIGHTS_FILE}: {key!r} has rank {rank}, but {CONFIG_FILE} gives its module rank {expected}",
                "r" if expected == config.rank else "rank_pattern",
            )


def _no_matrix(key: str) -> AdapterInvalidError:
    tensor = f"{WEIGHTS_FILE}: {key[:120]!r}"
    if "embed_tokens" in key or "lm_head" in key:
        return UnsupportedPeftFeatureError(
            f"{tensor} changes the embedding or the output layer; only modules of decoder layers are served"
        )
    return AdapterInvalidError(f"{tensor} is not the A or B matrix of a LoRA module")


def _digest_and_check_finite(file: BinaryIO, header: SafetensorsHeader, config: LoraSettings) -> str:
    """SHA-256 over the canonical form: length-prefixed configuration, then name, dtype, shape, bytes by
    name.
    """
    digest = hashlib.sha256()

    def add(part: bytes) -> None:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)

    add(_DIGEST_DOMAIN)
    add(json.dumps(config.canonical(), sort_keys=True, separators=(",", ":")).encode())
    for key in sorted(header.tensors):
        tensor = header.tensors[key]
        add(key.encode("utf-8", "surrogatepass"))
        add(tensor.dtype.encode())
        add(json.dumps(tensor.shape).encode())
        digest.update(tensor.num_bytes.to_bytes(8, "little"))
        for chunk in _chunks(file, header.data_offset + tensor.begin, tensor.num_bytes):
            if not _is_finite(chunk, tensor.dtype):
                raise NonFiniteWeightsError(f"{WEIGHTS_FILE}: {key!r} holds NaN or infinity")
            digest.update(chunk)
    return digest.hexdigest()


def _chunks(file: BinaryIO, offset: int, num_bytes: int) -> Iterator[bytes]:
    file.seek(offset)
    while num_bytes:
        chunk = file.read(min(num_bytes, _CHUNK_BYTES))
        if not chunk or (len(chunk) % 4 and len(chunk) != num_bytes):
            raise AdapterInvalidError(f"{WEIGHTS_FILE} became shorter while it was read")
        num_bytes -= len(chunk)
        yield chunk


def _is_finite(chunk: bytes, dtype: str) -> bool:
    if dtype == "BF16":  # numpy has no bfloat16: all exponent bits set means NaN or infinity
        exponents = np.frombuffer(chunk, np.uint16) & 0x7F80
        return not bool((exponents == 0x7F80).any())
    return bool(np.isfinite(np.frombuffer(chunk, np.float16 if dtype == "F16" else np.float32)).all())


def _check_library_agrees(path: Path, header: SafetensorsHeader) -> None:
    """The tensors are later loaded through the safetensors library, so it must see what was checked here."""
    try:
        with safe_open(path, framework="numpy") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterInvalidError(f"{WEIGHTS_FILE} is not a valid safetensors file") from error
    if shapes != {key: tensor.shape for key, tensor in header.tensors.items()}:
        raise AdapterInvalidError(f"{WEIGHTS_FILE} has an ambiguous header")
