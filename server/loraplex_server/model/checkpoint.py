"""Reads tensors of a Hugging Face safetensors folder, sharded or not, one at a time."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from loraplex_server.errors import BaseModelInvalidError


class Checkpoint:
    """Tensor name -> tensor, read when asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises BaseModelInvalidError when there are no safetensors weights."""
        self._folder = folder
        self._file_of = _index(folder)

    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return sorted(self._file_of)

    def has(self, name: str) -> bool:
        return name in self._file_of

    def tensor(self, name: str) -> Tensor:
        """One tensor on the CPU in the dtype it is stored in."""
        self._require([name])
        with safe_open(self._folder / self._file_of[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def packed(self, names: list[str]) -> Tensor:
        """Tensors side by side along their first dimension."""
        self._require(names)
        tensors = [self.tensor(name) for name in names]
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

    def _require(self, names: list[str]) -> None:
        missing = [name for name in names if name not in self._file_of]
        if missing:
            raise BaseModelInvalidError(
                f"the base's weights lack {', '.join(missing)}; its config.json and its weights do not belong together"
            )


def _index(folder: Path) -> dict[str, str]:
    """Tensor name -> file name."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        absent = sorted({name for name in weight_map.values() if not (folder / name).is_file()})
        if absent:
            raise BaseModelInvalidError(f"the base's folder lacks the shards {', '.join(absent)}")
        return weight_map
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BaseModelInvalidError(
            "the base's folder has no safetensors weights; convert it (pickle weights are not read)"
        )
    names: dict[str, str] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            names.update(dict.fromkeys(file.keys(), path.name))
    return names
