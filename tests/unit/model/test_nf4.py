"""NF4 weights are bitsandbytes' own, bit for bit, whichever way the product goes."""

from __future__ import annotations

from pathlib import Path

import bitsandbytes
import pytest
import torch
import torch.nn.functional as F
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from loraplex_server.model import nf4
from loraplex_server.model.linear import Linear
from loraplex_server.model.loader import load_decoder
from loraplex_server.model.nf4 import Nf4Linear, nf4_bytes

# Of the largest output. The CPU product rounds block scales to bf16, 2⁻⁹ relative at most, as bf16 rounds activations.
TOLERANCE = 0.01
SHAPES = {
    "one module": ([64], 128),
    "q, k and v of SmolLM2": ([576, 192, 192], 576),
    "a block across rows": ([48], 72),
    "an odd number of blocks": ([96, 32], 64),
    "outputs that do not fill a run": ([40, 24], 64),
}


def modules(rows: list[int], in_features: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randn(count, in_features, generator=generator) * 0.05 * (index + 1)
        for index, count in enumerate(rows)
    ]


def bitsandbytes_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    codes, state = quantize_4bit(weight.to(dtype), blocksize=64, compress_statistics=True, quant_type="nf4")
    dequantized: Tensor = dequantize_4bit(codes, state)
    return dequantized


@pytest.fixture(params=["product of the packed weight", "dequantize, then multiply"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "dequantize, then multiply":
        monkeypatch.setattr(nf4, "_packed_product_works", lambda: False)


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_weights_dequantize_bit_equal_to_bitsandbytes_module_by_module(kind: str, dtype: torch.dtype) -> None:
    weights = modules(*SHAPES[kind])
    dequantized = Nf4Linear(weights, None, dtype).dequantized()
    assert dequantized.dtype == dtype
    assert torch.equal(dequantized, torch.cat([bitsandbytes_weight(weight, dtype) for weight in weights]))


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("rows", [1, 3, 32, 65])
@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_products_equal_those_of_the_dequantized_weight(kind: str, rows: int) -> None:
    weights = modules(*SHAPES[kind])
    bias = torch.randn(sum(weight.shape[0] for weight in weights)).to(torch.bfloat16)
    linear: Linear = Nf4Linear(weights, bias, torch.bfloat16)
    x = torch.randn(rows, linear.in_features).to(torch.bfloat16)

    y = linear(x)

    expected = F.linear(x.float(), linear.dequantized().float(), bias.float())
    assert (y.dtype, y.shape) == (torch.bfloat16, (rows, linear.out_features))
    assert (y.float() - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_rows_that_are_a_view_of_a_wider_tensor_are_multiplied_alike() -> None:
    linear = Nf4Linear(modules([64], 128), None, torch.bfloat16)
    wide = torch.randn(5, 256).to(torch.bfloat16)
    assert torch.equal(linear(wide[:, 64:192]), linear(wide[:, 64:192].contiguous()))


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_bytes_are_known_beforehand_and_a_quarter_of_bf16_and_a_little(kind: str) -> None:
    rows, in_features = SHAPES[kind]
    linear = Nf4Linear(modules(rows, in_features), None, torch.bfloat16)
    assert linear.weight_bytes == nf4_bytes(rows, in_features, "cpu")
    biased = Nf4Linear(modules(rows, in_features), torch.zeros(sum(rows)).bfloat16(), torch.bfloat16)
    assert biased.weight_bytes == linear.weight_bytes + 2 * sum(rows)
    if kind.startswith("q, k and v"):
        assert linear.weight_bytes < 0.28 * 2 * sum(rows) * in_features


def test_the_packed_product_is_taken_only_where_it_gives_the_right_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    functional = nf4._bitsandbytes()
    genuine = functional._convert_weight_packed_for_cpu

    def another_layout(codes: Tensor, state: object) -> tuple[Tensor, object]:
        packed, packed_state = genuine(codes, state)
        return packed.flip(0), packed_state

    monkeypatch.setattr(functional, "_convert_weight_packed_for_cpu", another_layout)
    assert not nf4._packed_product_works.__wrapped__()


def test_the_loaded_projections_are_those_of_a_bitsandbytes_model(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")

    decoder = load_decoder(tmp_path, "nf4").decoder

    layer = decoder._weights.layers[0]
    for linear, names in (
        (layer.qkv, ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        (layer.o, ["self_attn.o_proj"]),
        (layer.gate_up, ["mlp.gate_proj", "mlp.up_proj"]),
        (layer.down, ["mlp.down_proj"]),
    ):
        theirs = []
        for name in names:
            weight = stored[f"model.layers.0.{name}.weight"]
            module = bitsandbytes.nn.Linear4bit(
                weight.shape[1], weight.shape[0], bias=False, quant_type="nf4", compute_dtype=torch.bfloat16
            )
            module.weight.data = weight
            module.to("cpu")  # quantizes
            theirs.append(dequantize_4bit(module.weight.data, module.weight.quant_state))
        assert torch.equal(linear.dequantized(), torch.cat(theirs)), names
