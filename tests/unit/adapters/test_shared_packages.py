"""A store whose packages have a second home, which other servers read."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from loraplex_adapters.errors import AdapterInvalidError, AdapterUnavailableError, StorageError
from loraplex_adapters.package import PackageLimits
from loraplex_adapters.store import PackageStore
from tests.support.tiny_peft import SavedAdapter, with_config

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """The folder that the servers share."""
    return tmp_path / "shared"


def store_of(folder: Path, shared: Path, **limits: int) -> PackageStore:
    return PackageStore(folder, PackageLimits(**limits), shared_url=f"file://{shared}")


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_a_package_put_by_one_server_is_fetched_by_another(
    plain: SavedAdapter, tmp_path: Path, scheme: str
) -> None:
    url = f"file://{tmp_path / 'shared'}" if scheme == "file" else f"memory://{uuid.uuid4().hex}/packages"
    here = PackageStore(tmp_path / "here", shared_url=url)
    there = PackageStore(tmp_path / "there", shared_url=url)
    package = here.put(plain.folder)

    fetched = there.fetch(package.digest)

    assert fetched.digest == package.digest
    assert fetched.folder == tmp_path / "there" / package.digest
    assert there.verify(package.digest) == fetched
    files, home = fsspec.core.url_to_fs(url)
    assert sorted(os.path.basename(path) for path in files.ls(f"{home}/{package.digest}", detail=False)) == [
        CONFIG,
        WEIGHTS,
    ]
    there.delete_shared(package.digest)
    there.delete_shared(package.digest)
    assert not files.exists(f"{home}/{package.digest}")
    assert there.fetch(package.digest) == fetched  # what is here already needs no other home


def test_a_package_in_neither_store_is_unavailable(tmp_path: Path, shared: Path) -> None:
    with pytest.raises(AdapterUnavailableError, match="in no store"):
        store_of(tmp_path / "here", shared).fetch("0" * 64)
    with pytest.raises(AdapterUnavailableError, match="missing"):
        PackageStore(tmp_path / "alone").fetch("0" * 64)


def test_fetching_replaces_a_damaged_package(plain: SavedAdapter, tmp_path: Path, shared: Path) -> None:
    store = store_of(tmp_path / "here", shared)
    package = store.put(plain.folder)
    (package.folder / WEIGHTS).write_bytes(b"")

    assert store.fetch(package.digest) == package
    assert store.verify(package.digest) == package


@pytest.mark.parametrize(("name", "position"), [(CONFIG, 0), (WEIGHTS, 3), (WEIGHTS, -40)])
def test_a_damaged_shared_package_is_never_taken_and_mended_by_putting_it_again(
    plain: SavedAdapter, tmp_path: Path, shared: Path, name: str, position: int
) -> None:
    here, there = store_of(tmp_path / "here", shared), store_of(tmp_path / "there", shared)
    digest = here.put(plain.folder).digest
    raw = bytearray((shared / digest / name).read_bytes())
    raw[position] ^= 1
    (shared / digest / name).write_bytes(raw)

    with pytest.raises(AdapterUnavailableError, match="shared store"):
        there.fetch(digest)

    assert there.digests() == []
    here.put(plain.folder)
    assert there.fetch(digest).digest == digest


def test_a_package_without_one_of_its_files_is_unavailable(
    plain: SavedAdapter, tmp_path: Path, shared: Path
) -> None:
    digest = store_of(tmp_path / "here", shared).put(plain.folder).digest
    (shared / digest / WEIGHTS).unlink()

    with pytest.raises(AdapterUnavailableError):
        store_of(tmp_path / "there", shared).fetch(digest)


def test_a_shared_file_above_the_limit_is_not_read_to_its_end(
    plain: SavedAdapter, tmp_path: Path, shared: Path
) -> None:
    digest = store_of(tmp_path / "here", shared).put(plain.folder).digest

    with pytest.raises(AdapterUnavailableError, match="more than 1000 bytes"):
        store_of(tmp_path / "there", shared, max_bytes=1000).fetch(digest)

    assert sorted(os.listdir(tmp_path / "there")) == [".lock"]


def test_putting_again_leaves_the_shared_files_alone(
    plain: SavedAdapter, tmp_path: Path, shared: Path
) -> None:
    here, there = store_of(tmp_path / "here", shared), store_of(tmp_path / "there", shared)
    digest = here.put(plain.folder).digest
    before = (shared / digest / WEIGHTS).stat()

    there.put(plain.folder)

    after = (shared / digest / WEIGHTS).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_servers_that_put_one_package_at_once_leave_it_whole(
    plain: SavedAdapter, tmp_path: Path, shared: Path
) -> None:
    stores = [store_of(tmp_path / f"server-{i}", shared) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        (digest,) = set(pool.map(lambda store: store.put(plain.folder).digest, stores * 4))

    assert sorted(os.listdir(shared / digest)) == [CONFIG, WEIGHTS]
    assert store_of(tmp_path / "another", shared).fetch(digest).digest == digest


def test_a_shared_store_that_fails_is_a_storage_error_without_its_place(
    plain: SavedAdapter, tmp_path: Path, shared: Path
) -> None:
    shared.write_text("a file where a folder should be")
    store = store_of(tmp_path / "here", shared)

    calls: list[Callable[[], object]] = [lambda: store.put(plain.folder), lambda: store.fetch("0" * 64)]
    for call in calls:
        with pytest.raises(StorageError, match="shared package store") as caught:
            call()
        assert str(tmp_path) not in str(caught.value)


def test_a_refused_package_reaches_no_other_server(plain: SavedAdapter, tmp_path: Path, shared: Path) -> None:
    with pytest.raises(AdapterInvalidError):
        store_of(tmp_path / "here", shared).put(with_config(plain, tmp_path / "source", use_dora=True))

    assert not shared.exists()


def test_a_url_of_an_unknown_scheme_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        PackageStore(tmp_path, shared_url="nonsense://host/bucket")
