"""Weights in int8: what quantizing them gives, and takes."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from loraplex_server.kernels import int8_matmul
from loraplex_server.kernels.int8_matmul import Int8Weight
from loraplex_server.kernels.quantize import quantize_rows_reference


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that operations allocate and have not given back."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live: dict[int, int] = {}
        self.peak_bytes = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self._live:
                    self._live[storage.data_ptr()] = storage.nbytes()
                    weakref.finalize(storage, self._live.pop, storage.data_ptr(), None)
        self.peak_bytes = max(self.peak_bytes, sum(self._live.values()))
        return result


@pytest.mark.parametrize("at_once", [1, 64 * 7, 64 * 40, 1 << 30])
def test_weights_quantized_in_slices_are_those_quantized_whole(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_matmul, "_WEIGHTS_AT_ONCE", at_once)
    dense = torch.randn(40, 64).bfloat16()
    dense[3] = 0
    values, scales = quantize_rows_reference(dense)

    weight = Int8Weight.from_dense(dense)

    assert torch.equal(weight.values, values)
    assert torch.equal(weight.scales, scales.view(-1))


def test_quantizing_a_large_weight_takes_little_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head of a large vocabulary would else need six times its bytes, which no memory plan counts."""
    monkeypatch.setattr(int8_matmul, "_WEIGHTS_AT_ONCE", 2**14)
    dense = torch.randn(4096, 64).bfloat16()

    with Allocations() as allocations:
        weight = Int8Weight.from_dense(dense)

    assert allocations.peak_bytes - dense.nbytes - weight.nbytes <= 16 * 2**14
