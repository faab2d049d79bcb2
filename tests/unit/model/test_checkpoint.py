"""Tensors come from one file or from shards, and must be exactly those that the decoder reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from loraplex_server.errors import BaseModelInvalidError
from loraplex_server.model.checkpoint import Checkpoint, weight_files

TENSORS = {name: torch.full((rows, 3), float(rows)) for name, rows in (("a", 2), ("b", 4), ("c", 1))}
SHAPES = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}


def save_shards(folder: Path, shards: dict[str, list[str]]) -> None:
    for file_name, names in shards.items():
        save_file({name: TENSORS[name] for name in names}, folder / file_name)
    weight_map = {name: file_name for file_name, names in shards.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.fixture(params=["one file", "shards"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "one file":
        save_file(TENSORS, tmp_path / "model.safetensors")
    else:
        save_shards(tmp_path, {"model-1-of-2.safetensors": ["a", "c"], "model-2-of-2.safetensors": ["b"]})
    return tmp_path


def equal(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(left, right)


def test_tensors_are_read_one_by_one_or_side_by_side(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    assert checkpoint.names() == ["a", "b", "c"]
    assert equal(checkpoint.tensor("b"), TENSORS["b"])
    assert equal(checkpoint.packed(["c", "a", "b"]), torch.cat([TENSORS[name] for name in "cab"]))


def test_exactly_the_expected_tensors_pass(folder: Path) -> None:
    Checkpoint(folder).check(SHAPES)


def test_all_missing_tensors_are_named(folder: Path) -> None:
    with pytest.raises(BaseModelInvalidError, match="lack x, y"):
        Checkpoint(folder).check({**SHAPES, "x": (1,), "y": (1,)})
    with pytest.raises(BaseModelInvalidError, match="lack x"):
        Checkpoint(folder).packed(["a", "x"])


def test_a_long_list_of_missing_tensors_is_cut(folder: Path) -> None:
    with pytest.raises(BaseModelInvalidError, match="t4 and 95 more"):
        Checkpoint(folder).check({f"t{index}": (1,) for index in range(100)})


def test_a_tensor_that_nothing_reads_is_refused(folder: Path) -> None:
    with pytest.raises(BaseModelInvalidError, match="hold c"):
        Checkpoint(folder).check({name: SHAPES[name] for name in "ab"})


def test_rotary_buffers_and_a_second_tied_head_may_lie_there(tmp_path: Path) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2), "lm_head.weight": torch.ones(2)}
    save_file({**TENSORS, **extra}, tmp_path / "model.safetensors")
    Checkpoint(tmp_path).check(SHAPES)


def test_a_wrong_shape_is_named_with_both_shapes(folder: Path) -> None:
    with pytest.raises(BaseModelInvalidError, match=r"b: \[4, 3\] instead of \[3, 4\]"):
        Checkpoint(folder).check({**SHAPES, "b": (3, 4)})


def test_an_absent_shard_is_named(folder: Path) -> None:
    shard = weight_files(folder)[-1]
    shard.unlink()
    with pytest.raises(BaseModelInvalidError, match="safetensors"):
        Checkpoint(folder)


def test_an_index_that_points_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "secret.safetensors")
    inside = tmp_path / "base"
    inside.mkdir()
    index = {"weight_map": dict.fromkeys(TENSORS, "../secret.safetensors")}
    (inside / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BaseModelInvalidError, match="outside its folder"):
        Checkpoint(inside)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(BaseModelInvalidError, match=r"index\.json") as raised:
        Checkpoint(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_cut_off_file_is_refused_by_name(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-8])
    with pytest.raises(BaseModelInvalidError, match=r"model\.safetensors of the base cannot be read"):
        Checkpoint(tmp_path)


def test_other_safetensors_beside_the_model_are_left_alone(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    save_file({"adapter": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    assert [path.name for path in weight_files(tmp_path)] == ["model.safetensors"]
    Checkpoint(tmp_path).check(SHAPES)
