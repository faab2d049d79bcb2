"""INT8 weights go through an exact integer product, and bitsandbytes has no part in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from loraplex_server.model.linear import Int8Linear, quantize_rows

SHAPES = [(192, 576), (64, 1536), (48, 8192)]  # inner sizes of SmolLM2, and one whose sums fp32 cannot hold


def integers(*shape: int, seed: int) -> Tensor:
    """Whole numbers whose scale is exactly 1, because each row holds 127: quantization changes nothing."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(90, 128, shape, generator=generator).float()
    values[:, 0] = 127.0
    return values


def exact_product(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T of whole numbers: fp64 holds every sum below 2⁵³ exactly."""
    return x.double() @ weight.double().t()


@pytest.mark.parametrize("rows", [1, 3, 8, 33])
@pytest.mark.parametrize(("out_features", "in_features"), SHAPES)
def test_the_product_is_that_of_the_integers_rounded_once(
    rows: int, out_features: int, in_features: int
) -> None:
    x, weight = integers(rows, in_features, seed=1), integers(out_features, in_features, seed=2)

    y = Int8Linear(weight)(x)

    assert torch.equal(y, exact_product(x, weight).float())


def test_sums_are_kept_in_integers_where_floats_would_round() -> None:
    """The check above must be one that a product in fp32 cannot pass."""
    x, weight = integers(8, 8192, seed=1), integers(64, 8192, seed=2)
    exact = exact_product(x, weight)
    assert exact.max() > 2**26
    assert not torch.equal(x @ weight.t(), exact.float())


@pytest.mark.parametrize("rows", [1, 5, 33])
def test_products_are_those_of_the_quantized_operands(rows: int) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, 576, generator=generator) * 3
    weight = torch.randn(192, 576, generator=generator) * 0.05

    y = Int8Linear(weight)(x)

    quantized_x, scale_x = quantize_rows(x)
    quantized_w, scale_w = quantize_rows(weight)
    expected = exact_product(quantized_x, quantized_w) * scale_x.double() * scale_w.double().t()
    # The two multiplications by scales round by 2⁻²⁴ each; nothing else rounds.
    torch.testing.assert_close(y.double(), expected, rtol=2**-22, atol=0)


def test_there_is_no_outlier_branch() -> None:
    """LLM.int8 would multiply the column of the outlier by itself and keep the small values."""
    x = torch.full((4, 64), 0.4)
    x[:, 3] = 127.0  # so that 0.4 is less than half a step
    weight = integers(8, 64, seed=5)

    y = Int8Linear(weight)(x)

    assert torch.equal(y, 127.0 * weight[:, 3].expand(4, 8))


def test_a_row_of_zeros_gives_zeros_and_the_bias() -> None:
    bias = torch.arange(8.0)
    assert torch.equal(Int8Linear(integers(8, 64, seed=5), bias)(torch.zeros(2, 64)), bias.expand(2, 8))


@pytest.mark.parametrize("rows", [1, 6])
def test_a_row_is_the_same_alone_and_in_any_batch(rows: int) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(rows, 576, generator=generator)
    linear = Int8Linear(torch.randn(64, 576, generator=generator))
    others = torch.randn(40, 576, generator=generator) * 50
    assert torch.equal(linear(torch.cat((others, x)))[40:], linear(x))


def test_each_weight_is_off_by_half_a_step_at_most() -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(6))
    linear = Int8Linear(weight)
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((linear.dequantized() - weight).abs() <= step * 0.5001).all()
    assert torch.equal(linear.rows(torch.tensor([5, 0])), linear.dequantized()[[5, 0]])


def test_an_int8_model_runs_without_bitsandbytes(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    script = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from loraplex_server.model.loader import load_decoder\n"
        "from loraplex_server.engine.engine import Engine\n"
        "from tests.support.forward import PagedRun\n"
        f"loaded = load_decoder(Path({str(tmp_path)!r}), 'auto', 'cpu')\n"
        "assert loaded.quantization == 'int8'\n"
        "run = PagedRun(loaded.decoder, 1, 8, kv_dtype=loaded.kv_dtype)\n"
        "assert run.feed({0: [1, 2, 3]})[0].isfinite().all()\n"
        "assert 'bitsandbytes' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[3])
