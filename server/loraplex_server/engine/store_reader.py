"""Reads an adapter from its image; where that is missing or damaged, makes the image from the stored package."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loraplex_adapters.base_spec import BaseSpec
from loraplex_adapters.compatibility import LoraWeights, load_lora_weights, match_to_base
from loraplex_adapters.errors import AdapterUnavailableError
from loraplex_adapters.package import AdapterPackage, PackageLimits, read_package
from loraplex_server.adapter_image import (
    PIECE_BYTES,
    AdapterImageError,
    ImageInfo,
    image_path,
    read_header,
    read_piece,
    write_image,
)
from loraplex_server.engine.adapter_arena import PackedAdapter
from loraplex_server.engine.adapter_loader import HostPlace

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StorePlaces:
    """Where packages and images are, and of which kind the images."""

    store: Path
    images: Path
    layout: str


class StoreReader:
    """An `AdapterReader` for the package store. May be called in several threads at once."""

    def __init__(
        self,
        places: StorePlaces,
        spec: BaseSpec,
        max_rank: int,
        pack: Callable[[LoraWeights], PackedAdapter],
        num_threads: int,
    ) -> None:
        """`pack` is for the day when no image can be written; `num_threads` read pieces of images.

        Pieces are read in the order in which they were asked for, so that one image after another is there.
        """
        self._places = places
        self._spec = spec
        self._max_rank = max_rank
        # What is in the store was admitted within the front end's limits; only the rank matters here.
        self._limits = PackageLimits(max_bytes=sys.maxsize, max_rank=max_rank)
        self._pack = pack
        self._pieces = ThreadPoolExecutor(num_threads, "adapter-pieces") if num_threads > 1 else None

    def __call__(self, digest: str, place: HostPlace) -> None:
        """Raises AdapterInvalidError, AdapterIncompatibleError or AdapterUnavailableError."""
        is_read = self._read_image(digest, place)
        if not is_read and self._make_image(digest):
            is_read = self._read_image(digest, place)
        if not is_read:
            self._read_package(digest, place)

    def _read_image(self, digest: str, place: HostPlace) -> bool:
        """False, and nothing is left of the attempt, if there is no sound image."""
        try:
            path = image_path(self._places.images, self._places.layout, digest)
            with path.open("rb", buffering=0) as file:
                info = read_header(file, digest, self._places.layout)
                self._check_fits(info)
                flat = place.begin(info.num_elements, info.ranks)
                self._read_pieces(file.fileno(), info, flat, place)
        except FileNotFoundError:
            return False
        except (AdapterImageError, OSError) as error:
            log.warning("an adapter's image cannot be used", extra={"digest": digest, "cause": str(error)})
            place.give_up()
            return False
        return True

    def _read_pieces(self, descriptor: int, info: ImageInfo, flat: Tensor, place: HostPlace) -> None:
        target = flat.view(torch.uint8).numpy().data
        piece_elements = PIECE_BYTES // flat.element_size()
        for number, _ in enumerate(self._pieces_in_order(descriptor, info, target), start=1):
            place.checked(min(number * piece_elements, info.num_elements))

    def _pieces_in_order(self, descriptor: int, info: ImageInfo, target: memoryview) -> Iterator[None]:
        """Yields once a piece and all before it are there. When it ends, however it does, nobody reads any more."""
        if self._pieces is None:
            for index in range(info.num_pieces):
                read_piece(descriptor, info, index, target)
                yield
            return
        pieces: list[Future[None]] = [
            self._pieces.submit(read_piece, descriptor, info, index, target)
            for index in range(info.num_pieces)
        ]
        try:
            for piece in pieces:
                yield piece.result()
        finally:
            for piece in pieces:
                piece.cancel()
            wait(pieces)

    def _check_fits(self, info: ImageInfo) -> None:
        """The package's own checks say what is wrong with an adapter that does not fit."""
        shapes = self._spec.module_shapes
        is_known = all(
            0 <= layer < self._spec.num_layers and module in shapes and 0 < rank <= self._max_rank
            for (layer, module), rank in info.ranks.items()
        )
        if not is_known or info.num_elements != sum(
            rank * sum(shapes[module]) for (_, module), rank in info.ranks.items()
        ):
            raise AdapterImageError("the adapter's image does not fit this engine")

    def _make_image(self, digest: str) -> bool:
        """From the stored package, which is checked anew; False where images cannot be written."""
        package = self._package(digest)
        plan = match_to_base(package, self._spec, self._max_rank)
        try:
            write_image(package, plan, self._spec, self._places.layout, self._places.images)
        except OSError as error:
            log.warning("an adapter's image cannot be written", extra={"digest": digest, "cause": str(error)})
            return False
        return True

    def _read_package(self, digest: str, place: HostPlace) -> None:
        """Without an image."""
        packed = self._pack(load_lora_weights(self._package(digest), self._spec, self._max_rank))
        place.begin(packed.flat.numel(), packed.ranks).copy_(packed.flat)

    def _package(self, digest: str) -> AdapterPackage:
        package = read_package(self._places.store / digest, self._limits)
        if package.digest != digest:
            raise AdapterUnavailableError("the stored package was changed; register it again")
        return package
