"""Reads tensors of a Hugging Face safetensors folder, sharded or not, one at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from loraplex_server.errors import BaseModelInvalidError

if TYPE_CHECKING:
    from torch import Tensor

_SHOWN_NAMES = 5  # of a long list in an error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the model, in order of name.

    Raises BaseModelInvalidError when there are none, or a shard is absent.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [folder / name for name in sorted(set(_weight_map(index).values()))]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        has_pickle = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        raise BaseModelInvalidError(
            f"the base's folder '{folder}' has no safetensors weights"
            + ("; convert its pickle weights, they are never read" if has_pickle else "")
        )
    return files


class Checkpoint:
    """Tensor name -> tensor, read when asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises BaseModelInvalidError when there are no safetensors weights."""
        self._folder = folder
        self._file_of = _index(folder)

    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return sorted(self._file_of)

    def tensor(self, name: str) -> Tensor:
        """One tensor on the CPU in the dtype it is stored in."""
        self._require([name])
        with _open(self._folder / self._file_of[name]) as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def packed(self, names: list[str]) -> Tensor:
        """Tensors side by side along their first dimension."""
        self._require(names)
        import torch  # not above: the front end asks this module for the files' names, and needs no torch for that

        tensors = [self.tensor(name) for name in names]
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Compare names and shapes with what the decoder reads; from the headers alone.

        A tensor that nothing would read is as wrong as a missing one: it belongs to a model that computes something
        else. Raises BaseModelInvalidError.
        """
        self._require(list(expected))
        unread = [name for name in self.names() if name not in expected and not _is_ignorable(name)]
        if unread:
            raise BaseModelInvalidError(
                f"the base's weights hold {_listed(unread)}, for which its config.json has no place"
            )
        shapes = self._shapes()
        misshapen = [name for name, shape in expected.items() if shapes[name] != shape]
        if misshapen:
            name = misshapen[0]
            raise BaseModelInvalidError(
                f"{len(misshapen)} of the base's weights do not have the shape that its config.json says, "
                f"e.g. {name}: {list(shapes[name])} instead of {list(expected[name])}"
            )

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for file_name in sorted(set(self._file_of.values())):
            with _open(self._folder / file_name) as file:
                shapes.update({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118 (not a dict)
        return shapes

    def _require(self, names: list[str]) -> None:
        missing = [name for name in names if name not in self._file_of]
        if missing:
            raise BaseModelInvalidError(
                f"the base's weights lack {_listed(missing)}; its config.json and its weights do not belong together"
            )


def _is_ignorable(name: str) -> bool:
    """Old checkpoints store the rotary frequencies, some tied ones the output head a second time."""
    return name.endswith("rotary_emb.inv_freq") or name == "lm_head.weight"


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN_NAMES])
    return shown if len(names) <= _SHOWN_NAMES else f"{shown} and {len(names) - _SHOWN_NAMES} more"


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name, from a shard index."""
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = set(weight_map.values())
        outside = sorted(name for name in files if Path(name).name != name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseModelInvalidError(f"{index.name} of the base cannot be read: {error}") from None
    if outside:
        raise BaseModelInvalidError(f"{index.name} of the base names {_listed(outside)}, outside its folder")
    absent = sorted(name for name in files if not (index.parent / name).is_file())
    if absent:
        raise BaseModelInvalidError(f"the base's folder lacks the shards {_listed(absent)}")
    return weight_map


def _open(path: Path) -> Any:
    """A safetensors file. Raises BaseModelInvalidError when it is damaged."""
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise BaseModelInvalidError(f"{path.name} of the base cannot be read: {error}") from None


def _index(folder: Path) -> dict[str, str]:
    """Tensor name -> file name."""
    names: dict[str, str] = {}
    for path in weight_files(folder):
        with _open(path) as file:
            names.update(dict.fromkeys(file.keys(), path.name))
    return names
