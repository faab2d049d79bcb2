"""Builds a decoder from a Hugging Face folder: reads, packs and quantizes one layer at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from loraplex_server.model.checkpoint import Checkpoint
from loraplex_server.model.config import DecoderConfig
from loraplex_server.model.decoder import Decoder, DecoderLayer, DecoderWeights, Embedding
from loraplex_server.model.int8 import Int8Linear
from loraplex_server.model.linear import DenseLinear, Linear
from loraplex_server.model.nf4 import Nf4Linear
from loraplex_server.model.numerics import Numerics, ResolvedQuantization, resolve_numerics
from loraplex_server.model.rope import rope_table
from loraplex_server.model.tensor_names import expected_tensors, parameter_count


@dataclass(frozen=True, slots=True)
class LoadedDecoder:
    """A decoder and what the engine must know to serve it."""

    decoder: Decoder
    device: torch.device
    quantization: ResolvedQuantization
    compute_dtype: torch.dtype  # of activations and LoRA weights
    kv_dtype: torch.dtype
    weight_bytes: int
    parameter_count: int
    max_context_tokens: int


def load_decoder(
    folder: Path,
    quantization: str = "auto",
    max_context_tokens: int | None = None,
    on_layer: Callable[[int, int], None] | None = None,
) -> LoadedDecoder:
    """Load and quantize the decoder that serves on a CPU; for a GPU see `model.gpu_loader`.

    max_context_tokens  lowered to what the base supports; None takes that.
    on_layer            called with (layers done, layers in all) for a progress display.

    Raises BaseModelError when the folder is incomplete or its architecture is not covered.
    """
    config = DecoderConfig.from_folder(folder)
    numerics = resolve_numerics(quantization, "cpu")
    context = context_tokens(config, max_context_tokens)
    builder = _Builder(open_checkpoint(folder, config), config, numerics)
    layers = []
    for index in range(config.num_layers):
        layers.append(builder.layer(index))
        if on_layer is not None:
            on_layer(index + 1, config.num_layers)
    embedding, lm_head, table_bytes = builder.tables()
    weights = DecoderWeights(embedding, layers, builder.norm("model.norm.weight"), lm_head)
    cos, sin = rope_table(config, context)
    decoder = Decoder(config, weights, (cos.to(numerics.device), sin.to(numerics.device)))
    linear_bytes = sum(linear.weight_bytes for layer in layers for linear in _linears(layer))
    return LoadedDecoder(
        decoder=decoder,
        device=numerics.device,
        quantization=numerics.quantization,
        compute_dtype=numerics.compute_dtype,
        kv_dtype=numerics.kv_dtype,
        weight_bytes=linear_bytes + table_bytes + builder.norm_bytes,
        parameter_count=parameter_count(config),
        max_context_tokens=context,
    )


def open_checkpoint(folder: Path, config: DecoderConfig) -> Checkpoint:
    """The folder's weights, checked to be those of `config`. Raises BaseModelError."""
    checkpoint = Checkpoint(folder)
    checkpoint.check(expected_tensors(config))
    return checkpoint


def context_tokens(config: DecoderConfig, wanted: int | None) -> int:
    """The longest context that is wanted and that the base supports."""
    return min(wanted or config.max_position_embeddings, config.max_position_embeddings)


class _Builder:
    """Reads tensors of one checkpoint and turns them into layers."""

    def __init__(self, checkpoint: Checkpoint, config: DecoderConfig, numerics: Numerics) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._numerics = numerics
        self.norm_bytes = 0

    def layer(self, index: int) -> DecoderLayer:
        config = self._config
        attention, feed_forward = f"model.layers.{index}.self_attn", f"model.layers.{index}.mlp"
        return DecoderLayer(
            input_norm=self.norm(f"model.layers.{index}.input_layernorm.weight"),
            qkv=self._linear([f"{attention}.{name}_proj" for name in "qkv"], config.qkv_bias),
            q_norm=self.norm(f"{attention}.q_norm.weight") if config.qk_norm else None,
            k_norm=self.norm(f"{attention}.k_norm.weight") if config.qk_norm else None,
            o=self._linear([f"{attention}.o_proj"], config.o_bias),
            post_attention_norm=self.norm(f"model.layers.{index}.post_attention_layernorm.weight"),
            gate_up=self._linear([f"{feed_forward}.gate_proj", f"{feed_forward}.up_proj"], config.mlp_bias),
            down=self._linear([f"{feed_forward}.down_proj"], config.mlp_bias),
        )

    def tables(self) -> tuple[Embedding, Linear, int]:
        """Embedding, output head and their bytes; a tied table is held once."""
        table = self._checkpoint.tensor("model.embed_tokens.weight")
        numerics = self._numerics
        if self._config.tie_embeddings:
            if numerics.quantization == "int8":
                head = Int8Linear(table.to(numerics.device), is_table=True)
                return Int8Embedding(head, numerics.compute_dtype), head, head.weight_bytes
            dense = table.to(numerics.device, numerics.compute_dtype)
            tied = DenseLinear(dense)
            return DenseEmbedding(dense), tied, tied.weight_bytes
        dense = table.to(
            numerics.device, torch.bfloat16 if numerics.quantization == "int8" else numerics.compute_dtype
        )
        weight = self._checkpoint.tensor("lm_head.weight")
        output: Linear
        if numerics.quantization == "int8":
            output = Int8Linear(weight.to(numerics.device))
        else:
            output = DenseLinear(weight.to(numerics.device, numerics.compute_dtype))
        return DenseEmbedding(dense, numerics.compute_dtype), output, output.weight_bytes + dense.nbytes

    def norm(self, name: str) -> Tensor:
        weight = self._checkpoint.tensor(name).to(self._numerics.device, self._numerics.compute_dtype)
        self.norm_bytes += weight.nbytes
        return weight

    def _linear(self, modules: list[str], has_bias: bool) -> Linear:
        numerics = self._numerics
        bias = None
        if has_bias:
            bias = self._checkpoint.packed([f"{module}.bias" for module in modules])
            bias = bias.to(numerics.device, numerics.compute_dtype)
        names = [f"{module}.weight" for module in modules]
        if numerics.quantization == "nf4":
            weights = [self._checkpoint.tensor(name).to(numerics.device) for name in names]
            return Nf4Linear(weights, bias, numerics.compute_dtype)
        weight = self._checkpoint.packed(names).to(numerics.device)
        if numerics.quantization == "int8":
            return Int8Linear(weight, bias)
        return DenseLinear(weight.to(numerics.compute_dtype), bias)


class DenseEmbedding:
    """Lookup in an unquantized table [vocab, hidden]."""

    def __init__(self, table: Tensor, dtype: torch.dtype | None = None) -> None:
        self._table = table
        self._dtype = dtype or table.dtype

    def __call__(self, token_ids: Tensor) -> Tensor:
        return F.embedding(token_ids, self._table).to(self._dtype)


class Int8Embedding:
    """Lookup in the int8 output head that the embedding is tied to."""

    def __init__(self, head: Int8Linear, dtype: torch.dtype) -> None:
        self._head = head
        self._dtype = dtype

    def __call__(self, token_ids: Tensor) -> Tensor:
        return self._head.rows(token_ids).to(self._dtype)


def _linears(layer: DecoderLayer) -> tuple[Linear, ...]:
    return (layer.qkv, layer.o, layer.gate_up, layer.down)
