"""A quantized base takes no more products than a dense one, no casts around them, and none for its adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from loraplex_server.kernels.lora import LoraLayers, LoraPart, LoraProjection, LoraSegment, SegmentedLora
from loraplex_server.model.decoder import DecoderLayer
from loraplex_server.model.linear import Linear
from loraplex_server.model.loader import LoadedDecoder, load_decoder
from tests.support.forward import PagedRun

HIDDEN, KV, FFN, NUM_LAYERS = 64, 32, 128, 2
WIDTHS = (HIDDEN + 2 * KV, HIDDEN, 2 * FFN, HIDDEN)  # q, k and v; o; gate and up; down

Product = tuple[int, int, torch.dtype, torch.dtype]  # rows, width, dtype of the input, of the output


class Recorded:
    """A linear that says what came and what went."""

    def __init__(self, linear: Linear, told: list[Product]) -> None:
        self._linear = linear
        self._told = told

    def __call__(self, x: Tensor) -> Tensor:
        y = self._linear(x)
        self._told.append((*y.shape, x.dtype, y.dtype))
        return y


def record_products(loaded: LoadedDecoder) -> list[Product]:
    """Of all layers, from now on."""
    told: list[Product] = []

    def recorded(layer: DecoderLayer) -> DecoderLayer:
        linears: dict[str, Any] = {
            name: Recorded(getattr(layer, name), told) for name in ("qkv", "o", "gate_up", "down")
        }
        return replace(layer, **linears)

    weights = loaded.decoder._weights
    loaded.decoder._weights = replace(weights, layers=list(map(recorded, weights.layers)))
    return told


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("quantization", ["nf4", "int8", "bf16", "fp32"])
def test_a_layer_is_four_products_that_keep_the_dtype_of_their_input(base: Path, quantization: str) -> None:
    """vLLM #9535, #8945, #5480, unsloth #2628: a quantized base was slower than bf16, with a product for each of q, k
    and v by itself and casts around all of them.
    """
    loaded = load_decoder(base, quantization)
    told = record_products(loaded)
    run = PagedRun(loaded.decoder, 1, 8, kv_dtype=loaded.kv_dtype)
    dtype = loaded.compute_dtype

    for tokens in ([1, 2, 3], [4]):
        told.clear()
        run.feed({0: tokens})
        assert told == NUM_LAYERS * [(len(tokens), width, dtype, dtype) for width in WIDTHS]


def test_the_adapters_of_a_batch_share_every_product_of_the_base(base: Path) -> None:
    """LoRAX #333, #670: one adapter halved the throughput."""
    loaded = load_decoder(base, "fp32")
    told = record_products(loaded)
    segments = [LoraSegment(row, row + 2, random_adapter(rank)) for row, rank in ((0, 1), (2, 8))]
    run = PagedRun(loaded.decoder, 3, 8, lora=SegmentedLora(segments))

    run.feed({0: [1, 2], 1: [3, 4], 2: [5, 6]})

    assert [(rows, width) for rows, width, _, _ in told] == NUM_LAYERS * [(6, width) for width in WIDTHS]


def random_adapter(rank: int) -> LoraLayers:
    """Of one module."""
    part = LoraPart(0, HIDDEN, 0, rank, torch.randn(rank, HIDDEN))
    return LoraLayers([{"down": LoraProjection(torch.randn(FFN, rank), (part,))}] * NUM_LAYERS)
