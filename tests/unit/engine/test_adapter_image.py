"""An image is, bit for bit, what the engine's own layouts make of a package; and whatever is not whole is refused."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loraplex_adapters.base_spec import LORA_MODULES, BaseSpec
from loraplex_adapters.compatibility import Place, load_lora_weights, match_to_base
from loraplex_adapters.package import AdapterPackage
from loraplex_adapters.store import PackageStore
from loraplex_server.adapter_image import (
    PIECE_BYTES,
    AdapterImageError,
    DeviceKind,
    ElementType,
    ImageInfo,
    delete_image,
    image_path,
    layout_name,
    remove_leftovers,
    write_image,
)
from loraplex_server.engine import store_reader
from loraplex_server.engine.adapter_arena import AdapterLayout, PackedAdapter
from loraplex_server.engine.gpu_adapters import GpuAdapterLayout
from loraplex_server.engine.store_reader import StorePlaces, StoreReader
from tests.unit.engine.packages import save_package
from tests.unit.engine.plain_place import PlainPlace, read_with

SPEC = BaseSpec(
    "LlamaForCausalLM",
    "f" * 64,
    2,
    {
        "q_proj": (16, 24),
        "k_proj": (16, 8),
        "v_proj": (16, 8),
        "o_proj": (24, 16),
        "gate_proj": (16, 40),
        "up_proj": (16, 40),
        "down_proj": (40, 16),
    },
)
RANKS = st.dictionaries(
    st.tuples(st.integers(0, 1), st.sampled_from(LORA_MODULES)), st.integers(1, 9), min_size=1
)
ALL_RANKS = {(layer, module): 2 + layer for layer in range(2) for module in LORA_MODULES}
DTYPES: dict[ElementType, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FOREIGN = layout_name("cpu", "float32", BaseSpec("LlamaForCausalLM", "e" * 64, 2, SPEC.module_shapes))


def packed_by_layout(package: AdapterPackage, device: DeviceKind, dtype: torch.dtype) -> PackedAdapter:
    layout = AdapterLayout(SPEC) if device == "cpu" else GpuAdapterLayout(SPEC)
    return layout.pack(load_lora_weights(package, SPEC, max_rank=16), dtype)


class ImageWorld:
    """A store with one package, and its image for a CPU's arena."""

    def __init__(self, root: Path, spec: BaseSpec = SPEC, ranks: dict[Place, int] | None = None) -> None:
        self.store, self.images = root / "store", root / "images"
        self.layout = layout_name("cpu", "float32", spec)
        self.spec = spec
        save_package(root / "made", spec, ranks or ALL_RANKS)
        self.package = PackageStore(self.store).put(root / "made")
        self.write()

    @property
    def path(self) -> Path:
        return image_path(self.images, self.layout, self.package.digest)

    def write(self) -> None:
        plan = match_to_base(self.package, self.spec, 16)
        write_image(self.package, plan, self.spec, self.layout, self.images)

    def reader(self, num_threads: int = 1) -> StoreReader:
        layout = AdapterLayout(self.spec)
        return StoreReader(
            StorePlaces(self.store, self.images, self.layout),
            self.spec,
            16,
            lambda weights: layout.pack(weights, torch.float32),
            num_threads,
        )

    def read(self, num_threads: int = 1) -> PackedAdapter:
        return read_with(self.reader(num_threads), self.package.digest, torch.float32)

    @property
    def num_elements(self) -> int:
        return match_to_base(self.package, self.spec, 16).num_elements(self.spec)

    def expected(self) -> PackedAdapter:
        weights = load_lora_weights(self.package, self.spec, 16)
        return AdapterLayout(self.spec).pack(weights, torch.float32)


@pytest.fixture
def world(tmp_path: Path) -> ImageWorld:
    return ImageWorld(tmp_path)


def bits(flat: torch.Tensor) -> bytes:
    return flat.view(torch.uint8).numpy().tobytes()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ranks=RANKS,
    stored=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    element=st.sampled_from(["float32", "bfloat16"]),
    device=st.sampled_from(["cpu", "gpu"]),
    seed=st.integers(0, 1000),
)
def test_an_image_holds_the_bits_that_the_engine_would_pack(
    tmp_path: Path,
    ranks: dict[Place, int],
    stored: torch.dtype,
    element: ElementType,
    device: DeviceKind,
    seed: int,
) -> None:
    shutil.rmtree(tmp_path, ignore_errors=True)
    package = save_package(tmp_path / "made", SPEC, ranks, dtype=stored, seed=seed)
    layout = layout_name(device, element, SPEC)
    write_image(package, match_to_base(package, SPEC, 16), SPEC, layout, tmp_path)
    nowhere = StorePlaces(tmp_path / "no store", tmp_path, layout)
    reader = StoreReader(nowhere, SPEC, 16, lambda weights: pytest.fail("it was packed"), num_threads=1)

    image = read_with(reader, package.digest, DTYPES[element])

    expected = packed_by_layout(package, device, DTYPES[element])
    assert bits(image.flat) == bits(expected.flat)
    assert image.ranks == expected.ranks


def wide_world(tmp_path: Path) -> ImageWorld:
    """An image of three pieces."""
    wide = BaseSpec("LlamaForCausalLM", "f" * 64, 1, dict.fromkeys(LORA_MODULES, (2**16, 2**16)))
    world = ImageWorld(tmp_path, wide, {(0, "q_proj"): 16, (0, "down_proj"): 16, (0, "o_proj"): 9})
    assert 2 * PIECE_BYTES < world.num_elements * 4 < 3 * PIECE_BYTES
    return world


@pytest.mark.parametrize("num_threads", [1, 3])
def test_an_image_of_several_pieces_is_read_whole(tmp_path: Path, num_threads: int) -> None:
    world = wide_world(tmp_path)
    expected = bits(world.expected().flat)
    shutil.rmtree(world.store)

    assert bits(world.read(num_threads).flat) == expected


@pytest.mark.parametrize("num_threads", [1, 3])
def test_pieces_are_told_in_order_as_they_are_found_sound_and_anew_after_damage(
    tmp_path: Path, num_threads: int
) -> None:
    world = wide_world(tmp_path)
    damage(world.path, "weights changed")  # in the last piece
    place = PlainPlace(world.package.digest, torch.float32)

    world.reader(num_threads)(world.package.digest, place)

    first, second = PIECE_BYTES // 4, PIECE_BYTES // 2
    assert place.checked_of_attempt == [[first, second], [first, second, world.num_elements]]
    assert place.packed is not None
    assert bits(place.packed.flat) == bits(world.expected().flat)


def test_nobody_reads_into_a_place_that_was_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = wide_world(tmp_path)
    active: set[int] = set()

    def read_slowly(descriptor: int, info: ImageInfo, index: int, target: memoryview) -> None:
        if index == 0:
            raise AdapterImageError("damaged")
        active.add(index)
        time.sleep(0.05)
        active.remove(index)

    class WatchedPlace(PlainPlace):
        def give_up(self) -> None:
            assert not active
            super().give_up()

    monkeypatch.setattr(store_reader, "read_piece", read_slowly)
    place = WatchedPlace(world.package.digest, torch.float32)

    world.reader(num_threads=2)(world.package.digest, place)

    assert len(place.checked_of_attempt) == 3  # the image, made again, and the package
    assert place.packed is not None
    assert bits(place.packed.flat) == bits(world.expected().flat)


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    match kind:
        case "cut":
            content = content[:-1]
        case "cut in the header":
            content = content[:20]
        case "emptied":
            content = bytearray()
        case "longer":
            content += b"\0"
        case "weights changed":
            content[-5] ^= 4
        case "header changed":
            content[40] ^= 1
        case "magic changed":
            content[0] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "kind",
    ["cut", "cut in the header", "emptied", "longer", "weights changed", "header changed", "magic changed"],
)
def test_a_damaged_image_is_made_again_from_the_package(world: ImageWorld, kind: str) -> None:
    sound = world.path.read_bytes()
    damage(world.path, kind)

    assert bits(world.read().flat) == bits(world.expected().flat)
    assert world.path.read_bytes() == sound


def test_an_image_of_another_base_or_adapter_is_not_taken_for_this_one(
    world: ImageWorld, tmp_path: Path
) -> None:
    sound = world.path.read_bytes()
    other = ImageWorld(tmp_path / "other", ranks={(0, "q_proj"): 3})
    world.path.write_bytes(other.path.read_bytes())
    assert bits(world.read().flat) == bits(world.expected().flat)

    plan = match_to_base(world.package, SPEC, 16)
    write_image(world.package, plan, SPEC, FOREIGN, world.images)
    shutil.copy(image_path(world.images, FOREIGN, world.package.digest), world.path)
    assert bits(world.read().flat) == bits(world.expected().flat)
    assert world.path.read_bytes() == sound


def test_a_missing_image_is_made_and_kept(world: ImageWorld) -> None:
    world.path.unlink()

    world.read()

    assert world.path.is_file()


def test_where_no_image_can_be_written_the_package_is_packed(world: ImageWorld) -> None:
    shutil.rmtree(world.images)
    world.images.write_text("a file where a folder should be")

    assert bits(world.read().flat) == bits(world.expected().flat)


def test_deleting_removes_the_image_in_every_layout(world: ImageWorld) -> None:
    plan = match_to_base(world.package, SPEC, 16)
    write_image(world.package, plan, SPEC, layout_name("gpu", "bfloat16", SPEC), world.images)

    delete_image(world.images, world.package.digest)
    delete_image(world.images, world.package.digest)

    assert not [path for path in world.images.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("began_s_ago", "left"), [(0, {"now"}), (1800, {"now", "young"}), (9000, {"now", "young"})]
)
def test_what_a_killed_writer_left_is_removed_if_it_is_of_an_earlier_server_or_old(
    world: ImageWorld, began_s_ago: int, left: set[str]
) -> None:
    now = time.time()
    for name, seconds_ago in {"old": 7200, "young": 600, "now": -1}.items():
        path = world.path.parent / f".unfinished-{name}"
        path.write_bytes(b"half")
        os.utime(path, (now - seconds_ago,) * 2)

    remove_leftovers(world.images, now - began_s_ago)

    assert {path.name.removeprefix(".unfinished-") for path in world.path.parent.glob(".unf*")} == left
    assert world.path.exists()


@pytest.mark.parametrize("layout", ["cpu-2-float32-f", "../cpu-1-float32-f", "cpu-1-int8-f", ""])
def test_a_malformed_layout_is_refused(layout: str) -> None:
    with pytest.raises(ValueError, match="no image is named"):
        image_path(Path("images"), layout, "a" * 64)
