"""A base of a named shape with random weights, made on the device, and random adapters for it."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from loraplex_adapters.base_spec import BaseSpec
from loraplex_server.engine.adapter_loader import HostPlace
from loraplex_server.model.config import DecoderConfig
from loraplex_server.model.projections import PROJECTIONS
from loraplex_server.model.tensor_names import expected_tensors, module_shapes

WEIGHT_SPREAD = 0.02
_ADAPTER_SPREAD = 0.01
_PIECE_ELEMENTS = 4 * 2**20  # of an adapter, there at a time


class RandomWeights:
    """Implements `loraplex_server.model.weight_source.WeightSource`; a name always gives the same tensor."""

    def __init__(self, config: DecoderConfig, device: torch.device) -> None:
        self._shapes = expected_tensors(config)
        self._device = device

    def tensor(self, name: str) -> Tensor:
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "little")
        generator = torch.Generator(self._device).manual_seed(seed)
        tensor = torch.empty(self._shapes[name], dtype=torch.bfloat16, device=self._device)
        mean, spread = (1.0, 0.05) if "norm" in name else (0.0, WEIGHT_SPREAD)
        return tensor.normal_(mean, spread, generator=generator)

    def names(self) -> list[str]:
        """All of the base's tensors."""
        return list(self._shapes)


def random_base_spec(config: DecoderConfig) -> BaseSpec:
    return BaseSpec(config.architecture, "random", config.num_layers, module_shapes(config))


def elements_per_rank(spec: BaseSpec) -> int:
    """Of an adapter on all linear layers."""
    return spec.num_layers * sum(sum(sizes) for sizes in spec.module_shapes.values())


class RandomAdapters:
    """Adapters on all linear layers, named "<rank>-<number>"; all share one random host buffer."""

    def __init__(self, spec: BaseSpec, max_rank: int, dtype: torch.dtype) -> None:
        self._spec = spec
        self._modules = [module for modules in PROJECTIONS.values() for module in modules]
        self._per_rank = per_rank = elements_per_rank(spec)
        flat = torch.empty(per_rank * max_rank, dtype=dtype)
        flat.normal_(0.0, _ADAPTER_SPREAD, generator=torch.Generator().manual_seed(1))
        self._flat = flat

    def read(self, digest: str, place: HostPlace) -> None:
        """As an engine's reader does, without the disk."""
        rank = int(digest.split("-")[0])
        keys = [(layer, module) for layer in range(self._spec.num_layers) for module in self._modules]
        flat = place.begin(self._per_rank * rank, dict.fromkeys(keys, rank))
        for start in range(0, flat.numel(), _PIECE_ELEMENTS):
            piece = slice(start, min(start + _PIECE_ELEMENTS, flat.numel()))
            flat[piece].copy_(self._flat[piece])
            place.checked(piece.stop)

    def nbytes(self, rank: int) -> int:
        """Bytes of one adapter."""
        return self._per_rank * rank * self._flat.element_size()
