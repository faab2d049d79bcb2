"""Builds a decoder on the GPU: reads, packs and quantizes one layer at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from loraplex_server.kernels.int8_matmul import Int8Weight
from loraplex_server.kernels.layer_ops import HeadNorms
from loraplex_server.kernels.nf4_weight import Nf4Weight
from loraplex_server.model.config import DecoderConfig
from loraplex_server.model.gpu_decoder import GpuDecoder, GpuDecoderLayer, GpuDecoderWeights
from loraplex_server.model.gpu_linear import DenseGpuLinear, GpuLinear, Int8GpuLinear, Nf4GpuLinear
from loraplex_server.model.numerics import Numerics
from loraplex_server.model.rope import rope_table
from loraplex_server.model.weight_source import WeightSource


def build_gpu_decoder(
    source: WeightSource,
    config: DecoderConfig,
    numerics: Numerics,
    max_context_tokens: int,
    *,
    int8_head: bool,
    on_layer: Callable[[int, int], None] | None = None,
) -> tuple[GpuDecoder, int]:
    """The decoder and the bytes of its weights.

    int8_head  hold the output head in int8 whatever the layers have; int8 layers have it anyway
    """
    builder = _Builder(source, config, numerics)
    layers = []
    for index in range(config.num_layers):
        layers.append(builder.layer(index))
        if on_layer is not None:
            on_layer(index + 1, config.num_layers)
    table, table_scales, head = builder.tables(int8_head=int8_head or numerics.quantization == "int8")
    final_norm = builder.vector("model.norm.weight")
    if numerics.device.type == "cuda":
        torch.cuda.empty_cache()  # of what quantizing took
    cos, sin = rope_table(config, max_context_tokens)
    decoder = GpuDecoder(
        config,
        GpuDecoderWeights(table, table_scales, layers, final_norm, head),
        (cos.contiguous().to(numerics.device), sin.contiguous().to(numerics.device)),
    )
    return decoder, builder.num_bytes


class _Builder:
    """Reads tensors of one source and turns them into layers; counts what it allocates."""

    def __init__(self, source: WeightSource, config: DecoderConfig, numerics: Numerics) -> None:
        self._source = source
        self._config = config
        self._numerics = numerics
        self.num_bytes = 0

    def layer(self, index: int) -> GpuDecoderLayer:
        config = self._config
        prefix = f"model.layers.{index}"
        attention, feed_forward = f"{prefix}.self_attn", f"{prefix}.mlp"
        head_norms = None
        if config.qk_norm:
            head_norms = HeadNorms(
                self.vector(f"{attention}.q_norm.weight"),
                self.vector(f"{attention}.k_norm.weight"),
                config.rms_norm_eps,
            )
        return GpuDecoderLayer(
            input_norm=self.vector(f"{prefix}.input_layernorm.weight"),
            qkv=self._linear([f"{attention}.{name}_proj" for name in "qkv"], config.qkv_bias),
            head_norms=head_norms,
            o=self._linear([f"{attention}.o_proj"], config.o_bias),
            post_attention_norm=self.vector(f"{prefix}.post_attention_layernorm.weight"),
            gate_up=self._linear([f"{feed_forward}.gate_proj", f"{feed_forward}.up_proj"], config.mlp_bias),
            down=self._linear([f"{feed_forward}.down_proj"], config.mlp_bias),
        )

    def tables(self, *, int8_head: bool) -> tuple[Tensor, Tensor | None, GpuLinear]:
        """Embedding table, its scales if it is int8, and the output head; a tied table is held once."""
        table = self._tensor("model.embed_tokens.weight")
        is_tied = self._config.tie_embeddings
        weight = table if is_tied else self._tensor("lm_head.weight")
        head: GpuLinear
        if int8_head:
            int8 = Int8Weight.from_dense(weight)
            head = self._counted(Int8GpuLinear(int8))
            if is_tied:
                return int8.values, int8.scales, head
        else:
            head = self._counted(DenseGpuLinear(weight))
            if is_tied:
                return weight, None, head
        self.num_bytes += table.nbytes
        return table, None, head

    def vector(self, name: str) -> Tensor:
        """A norm's weight."""
        vector = self._tensor(name)
        self.num_bytes += vector.nbytes
        return vector

    def _tensor(self, name: str) -> Tensor:
        return self._source.tensor(name).to(self._numerics.device, self._numerics.compute_dtype)

    def _linear(self, modules: list[str], has_bias: bool) -> GpuLinear:
        bias = torch.cat([self._tensor(f"{module}.bias") for module in modules]) if has_bias else None
        weights = [self._tensor(f"{module}.weight") for module in modules]
        match self._numerics.quantization:
            case "nf4":
                return self._counted(Nf4GpuLinear(Nf4Weight.from_dense(weights), bias))
            case "int8":
                return self._counted(Int8GpuLinear(Int8Weight.from_dense(torch.cat(weights)), bias))
            case _:
                return self._counted(DenseGpuLinear(torch.cat(weights), bias))

    def _counted(self, linear: GpuLinear) -> GpuLinear:
        self.num_bytes += linear.weight_bytes
        return linear
