"""An adapter's weights on disk exactly as an engine's arena holds them: loading one is reading a file.

`<images root>/<layout>/<digest>` holds a small header, then the flat weights from a multiple of 4096 on. The name of
the layout says everything that the bytes depend on besides the adapter, so an image is right or refused, never
misread. Images are a cache of the package store: each can be made again from its package.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec
import numpy as np
import xxhash

from loraplex_adapters.base_spec import BaseSpec
from loraplex_adapters.compatibility import LoraModulePlan, LoraPlan, Place
from loraplex_adapters.package import WEIGHTS_FILE, AdapterPackage
from loraplex_server.model.projections import PROJECTIONS
from loraplex_server.package_tensors import Array, PackageTensors, as_float32

DeviceKind = Literal["cpu", "gpu"]
ElementType = Literal["float32", "bfloat16"]

PIECE_BYTES = 8 * 2**20  # what one checksum covers, and one read
ELEMENT_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2}
_VERSION = 1
_MAGIC = b"lpximage"
_ALIGNMENT = 4096
_MAX_HEADER_BYTES = 4 * 2**20
_UNFINISHED_PREFIX = ".unfinished-"
_LEFTOVER_AFTER_S = 3600.0  # no writer takes so long
_LAYOUT = re.compile(r"(?P<device>cpu|gpu)-1-(?P<element>float32|bfloat16)-[0-9a-z]{1,16}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class AdapterImageError(ValueError):
    """An image is damaged or of another kind than asked for. Whoever reads images makes it again from the package."""


class ImageHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What an image says of itself."""

    version: int
    digest: str
    layout: str
    num_elements: int
    ranks: list[tuple[int, str, int]]  # (layer, module, rank), as the weights lie
    checksums: list[str]  # XXH3-128 of each PIECE_BYTES of the weights, hex


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An opened image whose header is sound."""

    num_elements: int
    ranks: dict[Place, int]
    data_offset: int  # bytes
    data_bytes: int
    checksums: list[str]

    @property
    def num_pieces(self) -> int:
        return len(self.checksums)


def layout_name(device: DeviceKind, element: ElementType, spec: BaseSpec) -> str:
    """What the bytes of an image depend on: the kind of arena, its element type, the base."""
    return f"{device}-1-{element}-{spec.fingerprint[:16]}"


def image_path(images_root: Path, layout: str, digest: str) -> Path:
    """Where the image of an adapter lies. Raises ValueError for a malformed layout or digest."""
    if not _LAYOUT.fullmatch(layout) or not _DIGEST.fullmatch(digest):
        raise ValueError(f"no image is named {layout[:80]!r}, {digest[:80]!r}")
    return images_root / layout / digest


def write_image(
    package: AdapterPackage, plan: LoraPlan, spec: BaseSpec, layout: str, images_root: Path
) -> None:
    """Make the image of a checked package, whole or not at all; one that is there is replaced.

    At most the weights of one projection of one layer are in memory at a time. Raises OSError where the disk fails,
    ValueError for a malformed layout.
    """
    final = image_path(images_root, layout, package.digest)
    match = _LAYOUT.fullmatch(layout)
    assert match is not None, "image_path has checked it"
    num_elements = plan.num_elements(spec)
    num_bytes = num_elements * ELEMENT_BYTES[match["element"]]
    header = ImageHeader(
        version=_VERSION,
        digest=package.digest,
        layout=layout,
        num_elements=num_elements,
        ranks=[(module.layer, module.module, module.rank) for module in plan.modules],
        checksums=["0" * 32] * -(-num_bytes // PIECE_BYTES),
    )
    final.parent.mkdir(parents=True, exist_ok=True)
    descriptor, unfinished = tempfile.mkstemp(prefix=_UNFINISHED_PREFIX, dir=final.parent)
    try:
        with os.fdopen(descriptor, "wb") as file, (package.folder / WEIGHTS_FILE).open("rb") as weights:
            file.seek(_data_offset(header))
            tensors = PackageTensors(weights, package)
            checksums = _Checksums()
            for piece in _flat_pieces(tensors, plan, match["device"], match["element"]):
                data = piece.data.cast("B")
                checksums.add(data)
                file.write(data)
            header = msgspec.structs.replace(header, checksums=checksums.finish())
            file.seek(0)
            file.write(_encode(header))
            file.flush()
            os.fsync(file.fileno())
        Path(unfinished).replace(final)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise
    _sync_folder(final.parent)


def delete_image(images_root: Path, digest: str) -> None:
    """Remove the images of an adapter in every layout; nothing happens if there are none."""
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"a digest has 64 hex digits, not {digest[:80]!r}")
    for path in images_root.glob(f"*/{digest}"):
        path.unlink(missing_ok=True)


def stored_images(images_root: Path) -> set[str]:
    """Digests that have an image in any layout."""
    return {path.name for path in images_root.glob("*/*") if _DIGEST.fullmatch(path.name)}


def remove_leftovers(images_root: Path, began_at: float = 0.0) -> None:
    """Remove what writers left that were killed: all from before `began_at`, seconds since 1970, else what is old."""
    before = max(began_at, time.time() - _LEFTOVER_AFTER_S)
    for path in images_root.glob(f"*/{_UNFINISHED_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < before:
                path.unlink()


def read_header(file: BinaryIO, digest: str, layout: str) -> ImageInfo:
    """Check that `file` is the whole image of `digest` in `layout`. Raises AdapterImageError."""
    prefix = file.read(len(_MAGIC) + 4)
    length = int.from_bytes(prefix[len(_MAGIC) :], "little")
    if not prefix.startswith(_MAGIC) or length > _MAX_HEADER_BYTES:
        raise AdapterImageError("the adapter's image has no header")
    encoded, checksum = file.read(length), file.read(16)
    if len(encoded) != length or xxhash.xxh3_128_digest(encoded) != checksum:
        raise AdapterImageError("the adapter's image has a damaged header")
    try:
        header = msgspec.json.decode(encoded, type=ImageHeader)
    except msgspec.DecodeError as error:
        raise AdapterImageError("the adapter's image has a malformed header") from error
    if (header.version, header.digest, header.layout) != (_VERSION, digest, layout):
        raise AdapterImageError("the adapter's image is another adapter's or of another layout")
    match = _LAYOUT.fullmatch(layout)
    if match is None:
        raise AdapterImageError("the adapter's image is of an unknown layout")
    data_bytes = header.num_elements * ELEMENT_BYTES[match["element"]]
    info = ImageInfo(
        header.num_elements,
        {(layer, module): rank for layer, module, rank in header.ranks},
        _data_offset(header),
        data_bytes,
        header.checksums,
    )
    is_whole = os.fstat(file.fileno()).st_size == info.data_offset + data_bytes
    if not is_whole or info.num_pieces != -(-data_bytes // PIECE_BYTES):
        raise AdapterImageError("the adapter's image is cut off or has too many bytes")
    return info


def read_piece(descriptor: int, info: ImageInfo, index: int, target: memoryview) -> None:
    """Read piece `index` into its place in `target`, bytes of all weights, and check it.

    Safe in several threads at once, for different pieces. Raises AdapterImageError and OSError.
    """
    start = index * PIECE_BYTES
    piece = target[start : min(start + PIECE_BYTES, info.data_bytes)]
    done = 0
    while done < len(piece):
        count = os.preadv(descriptor, [piece[done:]], info.data_offset + start + done)
        if count == 0:
            raise AdapterImageError("the adapter's image became shorter while it was read")
        done += count
    # A hash object lets go of the interpreter while it works on so many bytes.
    if xxhash.xxh3_128(piece).hexdigest() != info.checksums[index]:
        raise AdapterImageError("the adapter's image is damaged")


class _Checksums:
    """XXH3-128 of each PIECE_BYTES of a stream of bytes."""

    def __init__(self) -> None:
        self._done: list[str] = []
        self._hash = xxhash.xxh3_128()
        self._room = PIECE_BYTES

    def add(self, data: memoryview) -> None:
        while len(data):
            part, data = data[: self._room], data[self._room :]
            self._hash.update(part)
            self._room -= len(part)
            if self._room == 0:
                self._close_piece()

    def finish(self) -> list[str]:
        """Of all pieces, the last maybe a short one."""
        if self._room < PIECE_BYTES:
            self._close_piece()
        return self._done

    def _close_piece(self) -> None:
        self._done.append(self._hash.hexdigest())
        self._hash = xxhash.xxh3_128()
        self._room = PIECE_BYTES


def _flat_pieces(tensors: PackageTensors, plan: LoraPlan, device: str, element: str) -> Iterator[Array]:
    """The flat weights in order, as contiguous arrays of the arena's element type (bf16 as its bits)."""
    modules = {(module.layer, module.module): module for module in plan.modules}
    for layer in range(max((module.layer for module in plan.modules), default=-1) + 1):
        for names in PROJECTIONS.values():
            touched = [modules[layer, name] for name in names if (layer, name) in modules]
            if not touched:
                continue
            a = [_elements(tensors.read(module.a_key), element) for module in touched]
            if device == "cpu":  # Aᵀ of the modules side by side
                yield np.ascontiguousarray(np.concatenate(a).T)
            else:
                yield from a
            for module in touched:
                yield _scaled_b(tensors, module, element)


def _scaled_b(tensors: PackageTensors, module: LoraModulePlan, element: str) -> Array:
    """scaling · Bᵀ, contiguous."""
    scaled = as_float32(tensors.read(module.b_key)) * np.float32(module.scaling)
    return np.ascontiguousarray(_elements(scaled, element).T)


def _elements(array: Array, element: str) -> Array:
    """In the arena's type; to bf16 by rounding to nearest, ties to even."""
    if element == "float32":
        return as_float32(array)
    if array.dtype == np.uint16:
        return array
    bits = np.ascontiguousarray(as_float32(array)).view(np.uint32)
    odd = (bits >> 16) & 1
    return ((bits + (odd + np.uint32(0x7FFF))) >> 16).astype(np.uint16)


def _encode(header: ImageHeader) -> bytes:
    encoded = msgspec.json.encode(header)
    return _MAGIC + len(encoded).to_bytes(4, "little") + encoded + xxhash.xxh3_128_digest(encoded)


def _data_offset(header: ImageHeader) -> int:
    return -(-len(_encode(header)) // _ALIGNMENT) * _ALIGNMENT


def _sync_folder(folder: Path) -> None:
    """Make the rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
