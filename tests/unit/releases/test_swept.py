"""What a killed server left is gone when the next one has started: packages, images, copies in a shared home."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from loraplex_server.releases.packages import ServerPackages
from tests.unit.releases.conftest import FrontEnd, OpenFrontEnd

LAYOUT = "cpu-1-float32-ffffffffffffffff"


async def sweep(packages: ServerPackages) -> None:
    """The first sweep of a server."""
    sweeping = asyncio.create_task(packages.keep_swept())
    await asyncio.wait_for(packages.swept.wait(), 30)
    sweeping.cancel()


def write_image(front_end: FrontEnd, name: str) -> Path:
    """A file where images are."""
    path = front_end.data / "images" / LAYOUT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")
    return path


async def test_packages_that_were_not_registered_go_and_those_in_use_stay(
    open_front_end: OpenFrontEnd, package_folders: list[Path], digests: list[str]
) -> None:
    here = open_front_end()
    await here.register("faq", package_folders[0])
    here.store.put(package_folders[1])  # … and the server died before it was registered
    here.store.put(package_folders[2])
    with here.packages.lease(digests[2]):  # a registration that is under way
        await sweep(here.packages)
    assert here.stored() == sorted([digests[0], digests[2]])


async def test_images_whose_package_has_gone_go_too(
    open_front_end: OpenFrontEnd, package_folders: list[Path], digests: list[str]
) -> None:
    """The kill came after a package was deleted and before its image was."""
    here = open_front_end()
    await here.register("faq", package_folders[0])
    kept, orphan = write_image(here, digests[0]), write_image(here, digests[1])

    await sweep(here.packages)

    assert kept.exists()
    assert not orphan.exists()


async def test_half_an_image_from_before_the_start_goes_and_one_that_is_being_written_stays(
    open_front_end: OpenFrontEnd,
) -> None:
    here = open_front_end()
    before, since = write_image(here, ".unfinished-before"), write_image(here, ".unfinished-since")
    os.utime(before, (before.stat().st_mtime - 60,) * 2)

    await sweep(here.packages)

    assert not before.exists()
    assert since.exists()


async def test_what_was_shared_and_never_registered_leaves_the_shared_home(
    open_front_end: OpenFrontEnd, package_folders: list[Path], digests: list[str], tmp_path: Path
) -> None:
    here, there = open_front_end("a", shared=True), open_front_end("b", shared=True)
    for folder in package_folders:
        here.store.put(folder)  # … into the shared home too, and the server died before any was registered
    await there.register("faq", package_folders[0])

    await sweep(here.packages)

    assert os.listdir(tmp_path / "home") == [digests[0]]
    assert here.stored() == [digests[0]]


async def test_what_another_server_registers_while_it_leaves_the_shared_home_comes_back(
    open_front_end: OpenFrontEnd,
    package_folders: list[Path],
    digests: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, there = open_front_end("a", shared=True), open_front_end("b", shared=True)
    here.store.put(package_folders[0])
    delete_shared = here.store.delete_shared
    loop = asyncio.get_running_loop()

    def register_there_and_delete(digest: str) -> None:
        asyncio.run_coroutine_threadsafe(there.register("faq", package_folders[0]), loop).result(30)
        delete_shared(digest)

    monkeypatch.setattr(here.store, "delete_shared", register_there_and_delete)
    await sweep(here.packages)

    assert os.listdir(tmp_path / "home") == [digests[0]]
    assert here.stored() == [digests[0]]
