from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from loraplex_adapters.base_spec import BaseSpec
from loraplex_adapters.compatibility import load_lora_weights
from loraplex_adapters.errors import AdapterInvalidError, AdapterUnavailableError
from loraplex_adapters.package import PackageLimits, read_package
from loraplex_adapters.store import PackageStore
from tests.support.tiny_peft import SaveAdapter, SavedAdapter, with_config

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def visible(root: Path) -> list[str]:
    return sorted(name for name in os.listdir(root) if name != ".lock")


def test_a_stored_package_is_found_by_its_digest_after_reopening(plain: SavedAdapter, tmp_path: Path) -> None:
    package = PackageStore(tmp_path).put(plain.folder)

    reopened = PackageStore(tmp_path)

    assert package.digest == read_package(plain.folder).digest
    assert reopened.digests() == [package.digest]
    assert reopened.folder(package.digest) == package.folder == tmp_path / package.digest
    assert reopened.verify(package.digest) == package


def test_only_the_two_files_are_stored(plain: SavedAdapter, tmp_path: Path) -> None:
    folder = with_config(plain, tmp_path / "source")
    (folder / "notes.txt").write_text("private")
    store = PackageStore(tmp_path / "store")

    package = store.put(folder)

    assert sorted(os.listdir(package.folder)) == [CONFIG, WEIGHTS]
    assert visible(tmp_path / "store") == [package.digest]


def test_storing_a_package_again_changes_nothing(plain: SavedAdapter, tmp_path: Path) -> None:
    store = PackageStore(tmp_path)
    inode = (store.put(plain.folder).folder / WEIGHTS).stat().st_ino

    again = store.put(plain.folder)

    assert (again.folder / WEIGHTS).stat().st_ino == inode
    assert visible(tmp_path) == [again.digest]


def test_storing_a_package_again_repairs_a_damaged_one(plain: SavedAdapter, tmp_path: Path) -> None:
    store = PackageStore(tmp_path)
    package = store.put(plain.folder)
    (package.folder / WEIGHTS).write_bytes(b"")

    store.put(plain.folder)

    assert store.verify(package.digest) == package


def test_many_writers_of_one_package_leave_it_once_and_whole(plain: SavedAdapter, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        packages = list(pool.map(lambda _: PackageStore(tmp_path).put(plain.folder), range(16)))

    assert len({package.digest for package in packages}) == 1
    assert visible(tmp_path) == [packages[0].digest]
    PackageStore(tmp_path).verify(packages[0].digest)


def test_a_refused_package_leaves_nothing_behind(plain: SavedAdapter, tmp_path: Path) -> None:
    store = PackageStore(tmp_path / "store")

    with pytest.raises(AdapterInvalidError, match="use_dora"):
        store.put(with_config(plain, tmp_path / "source", use_dora=True))

    assert visible(tmp_path / "store") == []


def test_a_file_above_the_limit_is_not_copied_to_its_end(plain: SavedAdapter, tmp_path: Path) -> None:
    store = PackageStore(tmp_path, PackageLimits(max_bytes=1000))

    with pytest.raises(AdapterInvalidError, match="more than 1000 bytes"):
        store.put(plain.folder)


@pytest.mark.parametrize(("name", "position"), [(CONFIG, 0), (WEIGHTS, 3), (WEIGHTS, -40)])
def test_a_damaged_or_missing_file_is_noticed_on_reading(
    plain: SavedAdapter, tmp_path: Path, name: str, position: int
) -> None:
    store = PackageStore(tmp_path)
    package = store.put(plain.folder)
    path = package.folder / name
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)
    with pytest.raises(AdapterUnavailableError, match=r"damaged|changed"):
        store.verify(package.digest)

    path.unlink()

    with pytest.raises(AdapterUnavailableError, match="damaged"):
        store.verify(package.digest)


def test_a_package_that_is_not_stored_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(AdapterUnavailableError, match="missing"):
        PackageStore(tmp_path).folder("0" * 64)


@pytest.mark.parametrize("digest", ["", "..", "../../etc", "0" * 63, "A" * 64, "0" * 64 + "\n"])
def test_a_digest_is_never_taken_for_a_path(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ValueError, match="64 hex digits"):
        PackageStore(tmp_path).delete(digest)


def test_a_deleted_package_is_gone_but_loaded_weights_stay(
    plain: SavedAdapter, spec: BaseSpec, tmp_path: Path
) -> None:
    store = PackageStore(tmp_path)
    package = store.put(plain.folder)
    weights = load_lora_weights(package.folder, spec, max_rank=4)

    store.delete(package.digest)
    store.delete(package.digest)

    assert visible(tmp_path) == []
    expected = load_lora_weights(plain.folder, spec, max_rank=4)
    assert all(torch.equal(m.b, expected.modules[place].b) for place, m in weights.modules.items())


def test_what_a_crash_left_is_removed_when_the_store_is_opened(plain: SavedAdapter, tmp_path: Path) -> None:
    package = PackageStore(tmp_path).put(plain.folder)
    shutil.copytree(package.folder, tmp_path / ".unfinished-abc" / "deleted")

    PackageStore(tmp_path)

    assert visible(tmp_path) == [package.digest]


PUT_FOR_EVER = """
import sys
from pathlib import Path
from loraplex_adapters.store import PackageStore
store = PackageStore(Path(sys.argv[1]))
sys.stdout.write("ready\\n")
sys.stdout.flush()
while True:
    store.delete(store.put(Path(sys.argv[2])).digest)
"""


def test_killing_a_writer_leaves_only_whole_packages(plain: SavedAdapter, tmp_path: Path) -> None:
    digest = read_package(plain.folder).digest
    for milliseconds in (1, 7, 19):
        writer = subprocess.Popen(
            [sys.executable, "-c", PUT_FOR_EVER, str(tmp_path), str(plain.folder)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(milliseconds / 1000)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()

        store = PackageStore(tmp_path)

        assert visible(tmp_path) == store.digests()
        assert store.digests() in ([], [digest])
        for stored in store.digests():
            store.verify(stored)


def age(store: PackageStore, digest: str, seconds: float) -> None:
    """Let a package have been put so long ago."""
    moment = time.time() - seconds
    os.utime(store.folder(digest), (moment, moment))


def nobody(digests: set[str]) -> set[str]:
    """Says of all packages that nobody needs them."""
    return set()


def test_a_sweep_removes_old_packages_that_nobody_needs(
    plain: SavedAdapter, save_adapter: SaveAdapter, tmp_path: Path
) -> None:
    store = PackageStore(tmp_path)
    needed, forgotten, young = (store.put(save_adapter(seed=seed).folder).digest for seed in (11, 12, 13))
    age(store, needed, 4000)
    age(store, forgotten, 4000)
    age(store, young, 3000)
    asked: list[set[str]] = []

    def is_referenced(digests: set[str]) -> set[str]:
        asked.append(digests)
        return digests & {needed}

    assert store.sweep(is_referenced) == [forgotten]

    assert asked == [{needed, forgotten}]
    assert visible(tmp_path) == sorted([needed, young])
    assert store.sweep(nobody, older_than_s=2000) == sorted([needed, young])
    assert visible(tmp_path) == []
    assert store.sweep(nobody) == []


def test_a_package_put_again_is_new_for_the_sweep(plain: SavedAdapter, tmp_path: Path) -> None:
    store = PackageStore(tmp_path)
    digest = store.put(plain.folder).digest
    age(store, digest, 4000)

    def put_meanwhile(digests: set[str]) -> set[str]:
        PackageStore(tmp_path).put(plain.folder)  # by another server, which has yet to register it
        return set()

    assert store.sweep(put_meanwhile) == []
    assert store.verify(digest)


def test_a_sweep_leaves_everything_while_someone_writes(plain: SavedAdapter, tmp_path: Path) -> None:
    store = PackageStore(tmp_path)
    digest = store.put(plain.folder).digest
    age(store, digest, 4000)

    with PackageStore(tmp_path)._writing():
        assert store.sweep(nobody) == []

    assert store.sweep(nobody) == [digest]


def test_what_is_put_is_never_swept_from_under_another_process(plain: SavedAdapter, tmp_path: Path) -> None:
    sweeper = subprocess.Popen(
        [sys.executable, "-c", SWEEP_FOR_EVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert sweeper.stdout is not None
    assert sweeper.stdout.readline() == b"ready\n"
    store = PackageStore(tmp_path)
    try:
        for _ in range(100):
            digest = store.put(plain.folder).digest
            store.verify(digest)
            age(store, digest, 4000)
    finally:
        sweeper.kill()
        sweeper.wait()
        sweeper.stdout.close()


SWEEP_FOR_EVER = """
import sys
from pathlib import Path
from loraplex_adapters.store import PackageStore
store = PackageStore(Path(sys.argv[1]))
sys.stdout.write("ready\\n")
sys.stdout.flush()
while True:
    store.sweep(lambda digests: set())
"""
