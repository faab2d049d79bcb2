from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from loraplex_adapters.base_spec import BaseSpec
from loraplex_adapters.compatibility import load_lora_weights
from loraplex_adapters.errors import (
    AdapterInvalidError,
    LoraplexError,
    NonFiniteWeightsError,
    UnsupportedFormatError,
)
from loraplex_adapters.package import PackageLimits, read_package
from tests.support.tiny_peft import SaveAdapter, SavedAdapter, with_config, with_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def test_a_package_reports_its_size_and_tensors(plain: SavedAdapter) -> None:
    package = read_package(plain.folder)

    tensors = load_file(plain.folder / WEIGHTS)
    assert package.size_bytes == sum(t.nbytes for t in tensors.values())
    assert {k: t.shape for k, t in package.tensors.items()} == {k: tuple(t.shape) for k, t in tensors.items()}
    assert package.folder == plain.folder


def test_equal_weights_have_equal_digests_wherever_and_however_they_are_written(
    plain: SavedAdapter, tmp_path: Path
) -> None:
    tensors = load_file(plain.folder / WEIGHTS)
    folder = with_config(plain, tmp_path / "copy", base_model_name_or_path="elsewhere", lora_dropout=0.5)
    save_file(tensors, folder / WEIGHTS, metadata={"written": "by another tool"})
    config = json.loads((folder / CONFIG).read_text())
    config["target_modules"].reverse()
    (folder / CONFIG).write_text(json.dumps(dict(reversed(config.items())), indent=7))

    assert read_package(folder).digest == read_package(plain.folder).digest


@pytest.mark.parametrize(
    "fields", [{"lora_alpha": 9}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 3}}]
)
def test_another_scaling_is_another_digest(
    plain: SavedAdapter, tmp_path: Path, fields: dict[str, Any]
) -> None:
    assert read_package(with_config(plain, tmp_path, **fields)).digest != read_package(plain.folder).digest


def test_one_other_weight_is_another_digest(plain: SavedAdapter, tmp_path: Path) -> None:
    tensors = load_file(plain.folder / WEIGHTS)
    next(iter(tensors.values()))[0, 0] += 1

    changed = read_package(with_tensors(plain, tmp_path, tensors))

    assert changed.digest != read_package(plain.folder).digest


def test_swapped_tensors_are_another_digest(plain: SavedAdapter, tmp_path: Path) -> None:
    tensors = load_file(plain.folder / WEIGHTS)
    one, two = (f"base_model.model.model.layers.{n}.self_attn.q_proj.lora_A.weight" for n in (0, 1))
    tensors[one], tensors[two] = tensors[two], tensors[one]

    assert read_package(with_tensors(plain, tmp_path, tensors)).digest != read_package(plain.folder).digest


@pytest.mark.parametrize("name", ["adapter_model.bin", "model.PT", "x.pth", "x.ckpt", "weights.pkl"])
def test_a_pickle_file_is_refused_by_name(plain: SavedAdapter, tmp_path: Path, name: str) -> None:
    folder = with_config(plain, tmp_path)
    (folder / name).write_bytes(b"")

    with pytest.raises(UnsupportedFormatError, match=f"{name}.*pickle"):
        read_package(folder)


def test_what_a_trainer_leaves_beside_an_adapter_is_not_opened(plain: SavedAdapter, tmp_path: Path) -> None:
    folder = with_config(plain, tmp_path)
    os.mkfifo(folder / "training_args.bin")  # opening it would block
    os.mkfifo(folder / "README.md.fifo")

    assert read_package(folder).digest == read_package(plain.folder).digest


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_link_out_of_the_folder_is_refused(plain: SavedAdapter, tmp_path: Path, name: str) -> None:
    folder = with_config(plain, tmp_path / "adapter")
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)

    with pytest.raises(AdapterInvalidError, match=f"{name} is a link"):
        read_package(folder)


def a_missing_file(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_named_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def an_empty_file(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("spoil", [a_missing_file, a_folder, a_named_pipe, a_link_to_itself, an_empty_file])
def test_a_file_that_is_no_file_is_refused(
    plain: SavedAdapter, tmp_path: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    folder = with_config(plain, tmp_path)
    spoil(folder / name)

    with pytest.raises(AdapterInvalidError):
        read_package(folder)


@pytest.mark.parametrize("path", ["nothing-here", "a\0b"])
def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(AdapterInvalidError, match="folder"):
        read_package(tmp_path / path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_refused(
    plain: SavedAdapter, tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    tensors = {k: t.to(dtype) for k, t in load_file(plain.folder / WEIGHTS).items()}
    next(iter(tensors.values()))[-1, -1] = value

    with pytest.raises(NonFiniteWeightsError, match="NaN or infinity"):
        read_package(with_tensors(plain, tmp_path, tensors))


def test_the_largest_finite_weights_are_accepted(plain: SavedAdapter, tmp_path: Path) -> None:
    tensors = {k: t.bfloat16() for k, t in load_file(plain.folder / WEIGHTS).items()}
    next(iter(tensors.values()))[0, 0] = torch.finfo(torch.bfloat16).max

    read_package(with_tensors(plain, tmp_path, tensors))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.float8_e4m3fn])
def test_another_dtype_is_refused(plain: SavedAdapter, tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {k: t.to(dtype) for k, t in load_file(plain.folder / WEIGHTS).items()}

    with pytest.raises(AdapterInvalidError, match="only F32, F16, BF16"):
        read_package(with_tensors(plain, tmp_path, tensors))


def test_a_rank_other_than_the_configuration_says_is_refused(plain: SavedAdapter, tmp_path: Path) -> None:
    with pytest.raises(AdapterInvalidError, match=r"has rank 4, but .* rank 5") as caught:
        read_package(with_config(plain, tmp_path, r=5))

    assert caught.value.field == "r"


LIMITS = [
    (PackageLimits(max_bytes=1000), "bytes, above the limit of 1000"),
    (PackageLimits(max_tensors=3), "8 tensors"),
    (PackageLimits(max_rank=3), "rank 4 is above"),
    (PackageLimits(max_header_bytes=100), "header of"),
]


@pytest.mark.parametrize(("limits", "message"), LIMITS)
def test_every_budget_is_enforced(plain: SavedAdapter, limits: PackageLimits, message: str) -> None:
    with pytest.raises(AdapterInvalidError, match=message):
        read_package(plain.folder, limits)


def raw_safetensors(header: Any, data: bytes) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = A.replace("lora_A", "lora_B")


def entry(begin: int, end: int, shape: list[Any], **more: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end], **more}


MALFORMED: list[tuple[str, bytes]] = [
    ("a gap", raw_safetensors({A: entry(0, 16, [4, 1]), B: entry(20, 36, [1, 4])}, bytes(36))),
    ("overlap", raw_safetensors({A: entry(0, 16, [4, 1]), B: entry(8, 24, [1, 4])}, bytes(24))),
    ("bytes behind the last tensor", raw_safetensors({A: entry(0, 16, [4, 1])}, bytes(20))),
    ("a tensor beyond the end", raw_safetensors({A: entry(0, 16, [4, 1])}, bytes(12))),
    ("a shape that lies", raw_safetensors({A: entry(0, 16, [4, 2])}, bytes(16))),
    ("an empty tensor", raw_safetensors({A: entry(0, 0, [4, 0])}, b"")),
    ("a negative shape", raw_safetensors({A: entry(0, 16, [-4, -1])}, bytes(16))),
    ("a shape of truth values", raw_safetensors({A: entry(0, 4, [True, 1])}, bytes(4))),
    ("no tensors", raw_safetensors({}, b"")),
    ("an unknown field", raw_safetensors({A: entry(0, 16, [4, 1], more=1)}, bytes(16))),
    ("a key twice", raw_safetensors(b'{"a": {}, "a": {}}', b"")),
    (
        "metadata that is no text",
        raw_safetensors({"__metadata__": {"a": 1}, A: entry(0, 16, [4, 1])}, bytes(16)),
    ),
    ("a name with a line end", raw_safetensors({A + "\n": entry(0, 16, [4, 1])}, bytes(16))),
    ("a name that is a lone surrogate", raw_safetensors(b'{"\\ud800": {}}', b"")),
    ("a header beyond the end", struct.pack("<Q", 1000) + b"{}"),
    ("a header of 2^64 bytes", b"\xff" * 8 + b"{}"),
    ("seven bytes", b"\x02" + bytes(6)),
    ("three dimensions", raw_safetensors({A: entry(0, 16, [4, 1, 1])}, bytes(16))),
]


@pytest.mark.parametrize("raw", [raw for _, raw in MALFORMED], ids=[what for what, _ in MALFORMED])
def test_malformed_weights_are_refused(plain: SavedAdapter, tmp_path: Path, raw: bytes) -> None:
    folder = with_config(plain, tmp_path)
    (folder / WEIGHTS).write_bytes(raw)

    with pytest.raises(AdapterInvalidError):
        read_package(folder)


def check_any_bytes(plain: SavedAdapter, spec: BaseSpec, folder: Path, name: str, raw: bytes) -> None:
    """Loading may succeed or raise one of our errors, nothing else; and what loads is finite and complete."""
    shutil.copytree(plain.folder, folder, dirs_exist_ok=True)
    (folder / name).write_bytes(raw)
    try:
        weights = load_lora_weights(folder, spec, max_rank=16)
    except LoraplexError:
        return
    assert len(weights.modules) == 4
    assert all(bool(m.a.isfinite().all() and m.b.isfinite().all()) for m in weights.modules.values())


CORRUPTION = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@CORRUPTION
@given(data=st.data())
def test_a_truncated_file_never_raises_a_foreign_error(
    plain: SavedAdapter, spec: BaseSpec, tmp_path: Path, name: str, data: st.DataObject
) -> None:
    raw = (plain.folder / name).read_bytes()

    check_any_bytes(plain, spec, tmp_path, name, raw[: data.draw(st.integers(0, len(raw) - 1))])


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@CORRUPTION
@given(data=st.data())
def test_flipped_bits_never_raise_a_foreign_error(
    plain: SavedAdapter, spec: BaseSpec, tmp_path: Path, name: str, data: st.DataObject
) -> None:
    raw = bytearray((plain.folder / name).read_bytes())
    reach = min(len(raw), 1500)  # the header of the weights, mostly
    for bit in data.draw(st.lists(st.integers(0, reach * 8 - 1), min_size=1, max_size=4)):
        raw[bit // 8] ^= 1 << bit % 8

    check_any_bytes(plain, spec, tmp_path, name, bytes(raw))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70) | st.floats() | st.sampled_from(["F32", "BF16", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@CORRUPTION
@given(
    header=st.dictionaries(st.sampled_from([A, B, "__metadata__", "x"]), JSON_VALUES), size=st.integers(0, 64)
)
def test_a_random_header_never_raises_a_foreign_error(
    plain: SavedAdapter, spec: BaseSpec, tmp_path: Path, header: dict[str, Any], size: int
) -> None:
    check_any_bytes(plain, spec, tmp_path, WEIGHTS, raw_safetensors(header, bytes(size)))


@CORRUPTION
@given(raw=st.binary(max_size=200), name=st.sampled_from([CONFIG, WEIGHTS]))
def test_random_bytes_never_raise_a_foreign_error(
    plain: SavedAdapter, spec: BaseSpec, tmp_path: Path, raw: bytes, name: str
) -> None:
    check_any_bytes(plain, spec, tmp_path, name, raw)


def test_a_pickled_adapter_of_peft_is_refused(save_adapter: SaveAdapter, tmp_path: Path) -> None:
    saved = save_adapter()
    torch.save(saved.model.state_dict(), tmp_path / "adapter_model.bin")
    shutil.copy(saved.folder / CONFIG, tmp_path)

    with pytest.raises(AdapterInvalidError, match=r"adapter_model\.bin"):
        read_package(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        '"{n}":{{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}',
        '"{n}":{{"dtype":"F16","shape":[1],"data\\u005foffsets":[0,2]}}',
        '"{n}":{{}}',
        '"{n}":0',
    ],
)
def test_a_header_of_far_too_many_entries_is_refused_unread(
    plain: SavedAdapter, tmp_path: Path, entry: str
) -> None:
    """However its keys are written: it would take long to read."""
    header = "{" + ",".join(entry.format(n=n) for n in range(40_000)) + "}"
    folder = with_config(plain, tmp_path)
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header.encode())

    with pytest.raises(AdapterInvalidError, match="far more than 4096 tensors"):
        read_package(folder)


def test_long_metadata_are_no_tensors(plain: SavedAdapter, tmp_path: Path) -> None:
    folder = with_config(plain, tmp_path)
    notes = json.dumps([{"step": step, "loss": 0.5} for step in range(2000)])
    save_file(load_file(plain.folder / WEIGHTS), folder / WEIGHTS, metadata={"log": notes})

    assert read_package(folder).digest == read_package(plain.folder).digest
