"""Random adapters on disk as a server holds them: an image for each, of a package that was checked."""

from __future__ import annotations

from pathlib import Path

from benchmarks.random_base import RandomAdapters
from benchmarks.random_packages import write_packages
from loraplex_adapters.base_spec import BaseSpec
from loraplex_adapters.compatibility import match_to_base
from loraplex_adapters.package import PackageLimits, read_package
from loraplex_server.adapter_image import write_image
from loraplex_server.engine.adapter_loader import AdapterReader, HostPlace
from loraplex_server.engine.backend import Backend
from loraplex_server.engine.config import EngineConfig
from loraplex_server.engine.store_reader import StorePlaces, StoreReader


def write_images(folder: Path, spec: BaseSpec, layout: str, rank: int, count: int) -> list[str]:
    """Images of random packages under folder/images; returns the digests."""
    digests = []
    for package_folder in write_packages(folder / "packages", spec, rank, count):
        package = read_package(package_folder, PackageLimits(max_bytes=2**33, max_rank=rank))
        write_image(package, match_to_base(package, spec, rank), spec, layout, folder / "images")
        digests.append(package.digest)
    return digests


def images_or_random(
    folder: Path, config: EngineConfig, spec: BaseSpec, backend: Backend, adapters: RandomAdapters
) -> AdapterReader:
    """Reads digests from images as a server does, and "<rank>-<number>" from memory."""
    read_image = StoreReader(
        StorePlaces(folder / "store", folder / "images", backend.adapter_layout),
        spec,
        config.max_lora_rank,
        backend.pack_adapter,
        backend.residency_sizes.load_threads,
    )

    def read(digest: str, place: HostPlace) -> None:
        (adapters.read if "-" in digest else read_image)(digest, place)

    return read
