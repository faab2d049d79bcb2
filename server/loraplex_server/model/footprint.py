"""Bytes of a decoder's resident weights, known before it is loaded."""

from __future__ import annotations

from loraplex_server.kernels.nf4_weight import BLOCK_SIZE, RECORD_BYTES, TILE_ROWS
from loraplex_server.model.config import DecoderConfig
from loraplex_server.model.nf4 import nf4_bytes
from loraplex_server.model.numerics import Numerics
from loraplex_server.model.projections import PROJECTIONS
from loraplex_server.model.tensor_names import has_bias, module_shapes

_BF16_BYTES = 2
_SCALE_BYTES = 4  # int8 weights have one fp32 scale per output


def decoder_bytes(config: DecoderConfig, numerics: Numerics, *, int8_head: bool = False) -> int:
    """Bytes that the loader allocates for weights, scales, biases and norms.

    int8_head  the output head is in int8 whatever the layers have, as only a GPU does it
    """
    compute = numerics.compute_dtype.itemsize
    layer = (2 * config.hidden_size + (2 * config.head_dim if config.qk_norm else 0)) * compute
    shapes = module_shapes(config)
    for modules in PROJECTIONS.values():
        in_features = shapes[modules[0]][0]
        out_features = [shapes[module][1] for module in modules]
        layer += _weight_bytes(out_features, in_features, numerics)
        if has_bias(config, modules[0]):
            layer += sum(out_features) * compute
    return (
        config.num_layers * layer + config.hidden_size * compute + _table_bytes(config, numerics, int8_head)
    )


def scratch_bytes(config: DecoderConfig, numerics: Numerics) -> int:
    """Of the largest NF4 weight in bf16, which products of very many rows on a GPU want."""
    if numerics.quantization != "nf4" or numerics.device.type != "cuda":
        return 0
    shapes = module_shapes(config)
    weights = (
        shapes[modules[0]][0] * sum(shapes[module][1] for module in modules)
        for modules in PROJECTIONS.values()
    )
    return max(weights) * _BF16_BYTES


def _weight_bytes(out_features: list[int], in_features: int, numerics: Numerics) -> int:
    """One packed projection, without its bias."""
    rows = sum(out_features)
    match numerics.quantization:
        case "int8":
            return rows * (in_features + _SCALE_BYTES)
        case "nf4":
            if numerics.device.type == "cuda":
                return nf4_record_bytes(rows, in_features)
            return nf4_bytes(out_features, in_features, numerics.device.type)
        case _:
            return rows * in_features * numerics.compute_dtype.itemsize


def nf4_record_bytes(out_features: int, in_features: int) -> int:
    """What a GPU's NF4 weight takes: codes and scales in the order of the tensor cores."""
    return -(-out_features // TILE_ROWS) * (in_features // BLOCK_SIZE) * RECORD_BYTES


def _table_bytes(config: DecoderConfig, numerics: Numerics, int8_head: bool) -> int:
    """Embedding and output head. Of layers in NF4 both have the compute dtype, of those in int8 the table is bf16."""
    elements = config.vocab_size * config.hidden_size
    is_int8 = numerics.quantization == "int8"
    table = elements * (_BF16_BYTES if is_int8 else numerics.compute_dtype.itemsize)
    head = elements + config.vocab_size * _SCALE_BYTES if is_int8 or int8_head else table
    return head if config.tie_embeddings else head + table
