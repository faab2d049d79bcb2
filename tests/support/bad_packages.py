"""Packages that no server may take, each made from a sound PEFT folder of two layers or more, in a dtype of NumPy's; in
the order of their kinds.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.unit.admission.packages import CONFIG, WEIGHTS, raw_safetensors, write_manifest

Spoil = Callable[[Path], None]
"""Damages the package in a folder."""

_MIB = 2**20


def a_pickle(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")


def only_a_pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.pt")


def code_in_the_configuration(folder: Path) -> None:
    change_config(folder, auto_map={"AutoModel": "evil.Model"})


def a_truncated_file(folder: Path) -> None:
    raw = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(raw[:-5])


def a_header_longer_than_the_file(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 10_000) + b"{}")


def a_header_of_2_to_the_63_bytes(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**63) + b"{}")


def overlapping_offsets(folder: Path) -> None:
    rewrite_header(folder, lambda header: shift(header, -4))


def gapped_offsets(folder: Path) -> None:
    rewrite_header(folder, lambda header: shift(header, 4))


def duplicate_keys(folder: Path) -> None:
    header = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {}}'
    (folder / WEIGHTS).write_bytes(raw_safetensors(header, bytes(4)))


def duplicate_keys_in_the_configuration(folder: Path) -> None:
    twice = json.dumps(read_config(folder)["r"])
    (folder / CONFIG).write_text(f'{{"r": {twice}, ' + (folder / CONFIG).read_text()[1:])


def a_million_tensors(folder: Path) -> None:
    entries = ",".join(
        f'"t{n}":{{"dtype":"F16","shape":[1],"data_offsets":[{2 * n},{2 * n + 2}]}}' for n in range(10**6)
    )
    (folder / WEIGHTS).write_bytes(raw_safetensors(f"{{{entries}}}".encode(), bytes(2 * 10**6)))


def as_many_tensors_as_a_header_holds(folder: Path) -> None:
    entries = ",".join(f'"{n}":{{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}' for n in range(70_000))
    header = f"{{{entries}}}".encode()
    assert len(header) < 4 * _MIB
    (folder / WEIGHTS).write_bytes(raw_safetensors(header, bytes(2)))


def deeply_nested_json(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(raw_safetensors(b'{"a":' * 500_000, b""))


def a_named_pipe(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def a_device(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("/dev/zero")


def a_link_to_a_file_outside(folder: Path) -> None:
    shutil.move(folder / CONFIG, folder.parent / "elsewhere.json")
    (folder / CONFIG).symlink_to(folder.parent / "elsewhere.json")


def not_a_number(folder: Path) -> None:
    spoil_a_weight(folder, np.nan)


def infinity(folder: Path) -> None:
    spoil_a_weight(folder, np.inf)


def rank_0(folder: Path) -> None:
    change_config(folder, r=0)


def a_negative_rank(folder: Path) -> None:
    change_config(folder, r=-4)


def a_rank_above_any_limit(folder: Path) -> None:
    change_config(folder, r=100_000)


def another_rank_than_the_tensors(folder: Path) -> None:
    change_config(folder, r=2 * read_config(folder)["r"])


def a_rank_pattern_that_the_tensors_do_not_have(folder: Path) -> None:
    change_config(folder, rank_pattern={"q_proj": 2 * read_config(folder)["r"]})


def an_alpha_that_is_no_number(folder: Path) -> None:
    change_config(folder, lora_alpha=float("nan"))


def a_huge_alpha(folder: Path) -> None:
    change_config(folder, lora_alpha=1e30)


def dora(folder: Path) -> None:
    change_config(folder, use_dora=True)


def modules_to_save(folder: Path) -> None:
    change_config(folder, modules_to_save=["lm_head"])


def a_pattern_that_never_ends(folder: Path) -> None:
    # For a matcher that goes back; ours selects nothing, at once.
    change_config(folder, target_modules="((((a*)*)*)*)*b")


def a_manifest_that_is_no_json(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def a_manifest_of_other_files(folder: Path) -> None:
    write_manifest(folder)
    change_config(folder, lora_alpha=9)


def shapes_of_another_base(folder: Path) -> None:
    rewrite_weights(folder, lambda key, w: (key, np.ascontiguousarray(w[..., :3]) if "lora_A" in key else w))


def a_layer_that_the_base_has_not(folder: Path) -> None:
    rewrite_weights(folder, lambda key, w: (key.replace("layers.1.", "layers.700."), w))


def the_manifest_of_another_base(folder: Path) -> None:
    write_manifest(folder, fingerprint="0" * 64)


def the_manifest_of_another_template(folder: Path) -> None:
    write_manifest(folder, template_sha256="0" * 64)


INVALID: dict[int, tuple[Spoil, ...]] = {
    6: (
        a_named_pipe,
        a_device,
        a_link_to_a_file_outside,
    ),
    7: (
        a_pickle,
        only_a_pickle,
        code_in_the_configuration,
    ),
    8: (
        a_truncated_file,
        a_header_longer_than_the_file,
        a_header_of_2_to_the_63_bytes,
        overlapping_offsets,
        gapped_offsets,
        duplicate_keys,
        duplicate_keys_in_the_configuration,
        a_million_tensors,
        as_many_tensors_as_a_header_holds,
        deeply_nested_json,
    ),
    9: (
        not_a_number,
        infinity,
    ),
    10: (
        rank_0,
        a_negative_rank,
        a_rank_above_any_limit,
        another_rank_than_the_tensors,
        a_rank_pattern_that_the_tensors_do_not_have,
        an_alpha_that_is_no_number,
        a_huge_alpha,
    ),
    11: (
        dora,
        modules_to_save,
    ),
    12: (
        a_manifest_that_is_no_json,
        a_manifest_of_other_files,
    ),
}
"""What is malformed in itself, by row of the list of faults."""
FAULTY_FIELDS: dict[Spoil, str] = {
    rank_0: "r",
    a_negative_rank: "r",
    a_rank_above_any_limit: "r",
    another_rank_than_the_tensors: "r",
    a_rank_pattern_that_the_tensors_do_not_have: "rank_pattern",
    a_huge_alpha: "lora_alpha",
}
"""Which field of the configuration is at fault, for those of row 10 that are JSON at all, which NaN is not."""
FOREIGN: tuple[Spoil, ...] = (
    a_pattern_that_never_ends,
    shapes_of_another_base,
    a_layer_that_the_base_has_not,
    the_manifest_of_another_base,
    the_manifest_of_another_template,
)
"""What is sound and does not fit the base: row 11."""


def change_config(folder: Path, **fields: Any) -> None:
    (folder / CONFIG).write_text(json.dumps({**read_config(folder), **fields}))


def read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    return config


def rewrite_header(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    raw = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    (folder / WEIGHTS).write_bytes(raw_safetensors(json.dumps(header).encode(), raw[8 + length :]))


def shift(header: dict[str, Any], by: int) -> None:
    names = [name for name in header if name != "__metadata__"]
    second = sorted(names, key=lambda name: header[name]["data_offsets"])[1]
    header[second]["data_offsets"] = [offset + by for offset in header[second]["data_offsets"]]


def rewrite_weights(folder: Path, change: Callable[[str, np.ndarray], tuple[str, np.ndarray]]) -> None:
    weights = load_file(folder / WEIGHTS)
    save_file(dict(change(key, weight) for key, weight in weights.items()), folder / WEIGHTS)


def spoil_a_weight(folder: Path, value: float) -> None:
    weights = load_file(folder / WEIGHTS)
    next(iter(weights.values()))[0, 0] = value
    save_file(weights, folder / WEIGHTS)
