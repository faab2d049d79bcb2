"""INT8 weights go through an exact integer product without outliers, and bitsandbytes has no part in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from loraplex_server.model.int8 import Int8Linear

ROOT = Path(__file__).parents[3]


def integers(*shape: int, seed: int) -> Tensor:
    """Whole numbers whose scale is exactly 1, because each row holds 127: quantization changes nothing."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(90, 128, shape, generator=generator).float()
    values[:, 0] = 127.0
    return values


@pytest.mark.parametrize("rows", [1, 3, 8, 33])
def test_sums_are_kept_in_integers_where_floats_would_round(rows: int) -> None:
    x, weight = integers(rows, 8192, seed=1), integers(48, 8192, seed=2)
    exact = x.double() @ weight.double().t()  # fp64 holds every sum below 2⁵³
    assert exact.max() > 2**26
    assert not torch.equal(x @ weight.t(), exact.float())

    assert torch.equal(Int8Linear(weight)(x), exact.float())


class LargestFloats(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Elements of the largest tensor of floats that any operation makes."""

    found = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> object:
        made = function(*arguments, **(keywords or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor) and each.is_floating_point():
                self.found = max(self.found, each.numel())
        return made


@pytest.mark.parametrize("rows", [1, 32])
def test_no_floats_are_made_of_the_weight(rows: int) -> None:
    """bitsandbytes #605, #181, #611: at 32 rows 2 to 4 times slower than a dense layer, and int8 at 15 % of fp16."""
    linear = Int8Linear(integers(512, 1024, seed=3))
    x = integers(rows, 1024, seed=4)

    with LargestFloats() as floats:  # type: ignore[no-untyped-call]
        linear(x)

    assert 0 < floats.found <= rows * 1024


def test_there_is_no_outlier_branch() -> None:
    """LLM.int8 would multiply the column of the outlier by itself and keep the small values."""
    x = torch.full((4, 64), 0.4)
    x[:, 3] = 127.0  # so that 0.4 is less than half a step
    weight = integers(8, 64, seed=5)

    y = Int8Linear(weight)(x)

    assert torch.equal(y, 127.0 * weight[:, 3].expand(4, 8))


def test_each_weight_is_off_by_half_a_step_at_most() -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(6))
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((Int8Linear(weight).dequantized() - weight).abs() <= step * 0.5001).all()


def test_an_int8_model_runs_without_bitsandbytes(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "import loraplex_server.engine.engine\n"
        "from loraplex_server.model.loader import load_decoder\n"
        "from tests.support.forward import PagedRun\n"
        f"loaded = load_decoder(Path({str(tmp_path)!r}), 'int8')\n"
        "run = PagedRun(loaded.decoder, 1, 8, kv_dtype=loaded.kv_dtype)\n"
        "assert run.feed({0: [1, 2, 3]})[0].isfinite().all()\n"
        "assert 'bitsandbytes' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
