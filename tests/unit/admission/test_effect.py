"""What an adapter's weights alone tell of its effect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from loraplex_adapters.compatibility import match_to_base
from loraplex_adapters.package import read_package
from loraplex_server.admission.effect import NEGLIGIBLE, is_negligible
from tests.unit.admission.packages import RANK, SPEC, WEIGHTS, write_package

Change = Callable[[str, torch.Tensor], torch.Tensor]


def rewritten(folder: Path, change: Change) -> Path:
    write_package(folder)
    save_file(
        {key: change(key, w).contiguous() for key, w in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS
    )
    return folder


def is_idle(folder: Path) -> bool:
    package = read_package(folder)
    return is_negligible(package, match_to_base(package, SPEC, max_rank=16))


def without_common_ranks(key: str, weight: torch.Tensor) -> torch.Tensor:
    """A has the even ranks, B the odd ones: neither is zero, their product is."""
    ranks = torch.arange(RANK) % 2 == int("lora_B" in key)
    return weight * (ranks[:, None] if "lora_A" in key else ranks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("zeros", "expected"),
    [
        (lambda key: "lora_B" in key, True),  # as before training
        (lambda key: "lora_A" in key, True),
        (lambda key: "lora_B" in key or "layers.0" in key, True),
        (lambda key: ("lora_A" in key) == ("layers.0" in key), True),  # never both of a module
        (lambda key: False, False),
        (lambda key: "layers.0" in key, False),
        (lambda key: "layers.0" in key or "q_proj" in key, False),
    ],
)
def test_an_adapter_whose_every_module_has_a_matrix_of_zeros_is_idle(
    tmp_path: Path, zeros: Callable[[str], bool], expected: bool, dtype: torch.dtype
) -> None:
    def change(key: str, weight: torch.Tensor) -> torch.Tensor:
        return (weight * -0.0 if zeros(key) else weight).to(dtype)  # zeros of both signs

    assert is_idle(rewritten(tmp_path, change)) is expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_adapter_of_which_no_rank_has_both_a_row_and_a_column_is_idle(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    assert is_idle(rewritten(tmp_path, lambda key, weight: without_common_ranks(key, weight).to(dtype)))


def test_strength_is_a_bound_of_what_a_module_adds_and_decides(tmp_path: Path) -> None:
    def change(key: str, weight: torch.Tensor) -> torch.Tensor:
        """Rank-one products of norm 1/2 · NEGLIGIBLE, which scaling 8/4 makes NEGLIGIBLE."""
        row = torch.zeros_like(weight if "lora_A" in key else weight.T)
        row[1, 3:5] = torch.tensor([3.0, 4.0]) * (1.0 if "lora_A" in key else NEGLIGIBLE / 50)
        return row if "lora_A" in key else row.T

    assert is_idle(rewritten(tmp_path / "at", lambda key, weight: change(key, weight) * 0.999))
    assert not is_idle(rewritten(tmp_path / "above", lambda key, weight: change(key, weight) * 1.001))


def test_the_largest_numbers_do_not_overflow_into_doubt(tmp_path: Path) -> None:
    huge = float(np.finfo(np.float32).max)

    assert not is_idle(rewritten(tmp_path, lambda key, weight: torch.full_like(weight, huge)))
