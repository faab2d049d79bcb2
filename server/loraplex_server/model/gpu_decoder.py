"""The decoder of the Llama family as a sequence of kernels over fixed buffers; see `model.decoder` for the mathematics.

Nothing is allocated and nothing waits for the host, so that a pass can be captured in a graph. What stands around a
product is fused with it where a row allows: residual + norm + quantization, rotation + cache write, SwiGLU +
quantization. LoRA's two products run beside the base product, into the residual stream or into a buffer that rotation
and SwiGLU add. In a long prefill of one adapter both are plain matrix products instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loraplex_server.kernels.decode_attention import decode_attention
from loraplex_server.kernels.embedding import embed
from loraplex_server.kernels.layer_ops import HeadNorms
from loraplex_server.kernels.lora_apply import lora_apply, lora_prepare
from loraplex_server.kernels.lora_dense import lora_dense
from loraplex_server.kernels.lora_tables import ProjectionShape
from loraplex_server.kernels.norm import rms_norm
from loraplex_server.kernels.paged_attention import AttentionShape
from loraplex_server.kernels.prefill_attention import prefill_attention
from loraplex_server.kernels.quantize import quantize_rows
from loraplex_server.kernels.rope import rope_and_write
from loraplex_server.kernels.side_stream import SideStream
from loraplex_server.kernels.swiglu import swiglu
from loraplex_server.model.config import DecoderConfig
from loraplex_server.model.gpu_batch import GpuBatch
from loraplex_server.model.gpu_linear import GpuLinear, LinearInput
from loraplex_server.model.gpu_workspace import GpuWorkspace
from loraplex_server.model.projections import PROJECTIONS
from loraplex_server.model.tensor_names import module_shapes


@dataclass(frozen=True, slots=True)
class GpuDecoderLayer:
    """Weights of one layer; norms are [features] in the compute dtype."""

    input_norm: Tensor
    qkv: GpuLinear
    head_norms: HeadNorms | None  # Qwen3
    o: GpuLinear
    post_attention_norm: Tensor
    gate_up: GpuLinear
    down: GpuLinear


@dataclass(frozen=True, slots=True)
class GpuDecoderWeights:
    """All weights of a decoder on the GPU."""

    table: Tensor  # [vocab, hidden], of any dtype
    table_scales: Tensor | None  # [vocab] fp32 where the table is int8
    layers: list[GpuDecoderLayer]
    final_norm: Tensor
    lm_head: GpuLinear


def projection_shapes(config: DecoderConfig) -> dict[str, ProjectionShape]:
    """Projection name -> its shape, as LoRA's kernels want it."""
    shapes = module_shapes(config)
    return {
        name: ProjectionShape(index, shapes[modules[0]][0], tuple(shapes[module][1] for module in modules))
        for index, (name, modules) in enumerate(PROJECTIONS.items())
    }


class GpuDecoder:
    """Launches forward passes. Holds weights and constants only."""

    def __init__(
        self, config: DecoderConfig, weights: GpuDecoderWeights, rope_table: tuple[Tensor, Tensor]
    ) -> None:
        """`rope_table` is (cos, sin), each [max_positions, head_dim / 2] fp32, contiguous."""
        self.config = config
        self._weights = weights
        self._cos, self._sin = rope_table
        self._projections = projection_shapes(config)
        self._in_features = [shape.in_features for shape in self._projections.values()]
        self._side = SideStream(self._cos.device)
        self._query_columns = config.num_heads * config.head_dim
        self._shapes = [
            AttentionShape(config.num_heads, config.num_kv_heads, config.head_dim, window)
            for window in config.sliding_window_of_layer
        ]

    def forward(
        self, batch: GpuBatch, workspace: GpuWorkspace, kv_cache: list[Tensor], sampled: Tensor
    ) -> Tensor:
        """Logits [m, vocab] fp32 of the rows that `batch.logit_rows` names; a view of the workspace.

        kv_cache  one tensor per layer, [num_blocks, block_size, 2 · kv_heads · head_dim]: keys, then values
        sampled   [max rows] int64, the tokens that the step before sampled
        """
        hidden = workspace.hidden[: batch.num_rows]
        # torch's own launches wait for all before them. So the inputs and adapters' records, which kernels have
        # written, are there for whatever follows, also for what it reads before `wait_for_previous`.
        token_ids = workspace.token_ids[: batch.num_rows]
        torch.where(
            batch.token_ids < 0,
            sampled.index_select(0, (-1 - batch.token_ids).clamp_(min=0)).to(torch.int32),
            batch.token_ids,
            out=token_ids,
        )
        if batch.lora is not None and batch.lora.sole_slot is None:
            lora = batch.lora
            lora_prepare(workspace.lora, lora.tables, lora.row_tiles, self._in_features, lora.tile_rows)
        embed(token_ids, self._weights.table, self._weights.table_scales, hidden)
        delta: Tensor | None = None
        for index, layer in enumerate(self._weights.layers):
            x = self._norm(hidden, delta, layer.input_norm, layer.qkv, batch, workspace)
            delta = self._attend(index, layer, x, batch, workspace, kv_cache[index])
            x = self._norm(hidden, delta, layer.post_attention_norm, layer.gate_up, batch, workspace)
            delta = self._feed_forward(index, layer, x, batch, workspace)
        return self._logits(hidden, delta, batch, workspace)

    def _attend(
        self,
        index: int,
        layer: GpuDecoderLayer,
        x: LinearInput,
        batch: GpuBatch,
        workspace: GpuWorkspace,
        cache: Tensor,
    ) -> Tensor:
        """What attention adds to the residual stream, [n, hidden]."""
        config, num_rows = self.config, batch.num_rows
        qkv, attended = workspace.qkv[:num_rows], workspace.attended[:num_rows]
        lora = self._project("qkv", layer.qkv, index, x, qkv, batch, workspace)
        rope_and_write(
            qkv,
            self._cos,
            self._sin,
            batch.positions,
            batch.kv_slots,
            cache,
            config.num_heads,
            config.num_kv_heads,
            layer.head_norms,
            lora,
        )
        queries = qkv[:, : self._query_columns].view(num_rows, config.num_heads, config.head_dim)
        decodes = batch.num_decodes
        if decodes:
            decode_attention(
                queries[:decodes],
                cache,
                batch.block_tables,
                batch.context_lengths,
                batch.max_context,
                attended[:decodes],
                workspace.part_out,
                workspace.part_state,
                self._shapes[index],
            )
        if batch.query_tiles is not None:  # behind the decodes, which zero rows of prefills among the first
            prefill_attention(
                queries, cache, batch.block_tables, batch.query_tiles, attended, self._shapes[index]
            )
        return self._project_back("o", layer.o, index, attended, batch, workspace)

    def _feed_forward(
        self, index: int, layer: GpuDecoderLayer, x: LinearInput, batch: GpuBatch, workspace: GpuWorkspace
    ) -> Tensor:
        """What the feed-forward block adds to the residual stream, [n, hidden]."""
        gate_up, activated = workspace.gate_up[: batch.num_rows], workspace.activated[: batch.num_rows]
        lora = self._project("gate_up", layer.gate_up, index, x, gate_up, batch, workspace)
        if layer.down.takes_int8 and batch.lora is None:
            quantized = workspace.quantized(*activated.shape)
            swiglu(gate_up, None, quantized)
            down = workspace.delta[: batch.num_rows]
            layer.down(LinearInput(None, quantized), down)
            return down
        swiglu(gate_up, activated, None, lora)
        return self._project_back("down", layer.down, index, activated, batch, workspace)

    def _project(
        self,
        projection: str,
        linear: GpuLinear,
        index: int,
        x: LinearInput,
        out: Tensor,
        batch: GpuBatch,
        workspace: GpuWorkspace,
    ) -> Tensor | None:
        """A projection into `out`; its LoRA, still to be added by whoever reads `out`."""
        if batch.lora is None or batch.lora.sole_slot is not None:
            linear(x, out)
            self._add_dense(projection, index, x.dense, out, batch, workspace)
            return None
        delta = workspace.lora_delta(*out.shape)
        self._side.fork()
        linear(x, out)  # first, so that LoRA takes the room that it leaves
        with self._side.work():
            self._lora(projection, index, x.dense, delta, batch, workspace, adds=False)
        self._side.join()
        return delta

    def _add_dense(
        self,
        projection: str,
        index: int,
        x: Tensor | None,
        out: Tensor,
        batch: GpuBatch,
        workspace: GpuWorkspace,
    ) -> None:
        """LoRA of the one adapter that all rows carry, if there is one."""
        if batch.lora is None or batch.lora.sole_slot is None:
            return
        assert x is not None
        tables, slot, shape = batch.lora.tables, batch.lora.sole_slot, self._projections[projection]
        lora_dense(x, out, tables, slot, index, shape, workspace.shrunk)

    def _project_back(
        self,
        projection: str,
        linear: GpuLinear,
        index: int,
        x: Tensor,
        batch: GpuBatch,
        workspace: GpuWorkspace,
    ) -> Tensor:
        """A projection of dense rows for the residual stream, and its LoRA, which goes there at once."""
        is_segmented = batch.lora is not None and batch.lora.sole_slot is None
        if is_segmented:
            self._side.fork()
        quantized = None
        if linear.takes_int8:
            quantized = workspace.quantized(*x.shape)
            quantize_rows(x, quantized)
        delta = workspace.delta[: batch.num_rows]
        linear(LinearInput(x, quantized), delta)
        if is_segmented:
            with self._side.work():
                hidden = workspace.hidden[: batch.num_rows]
                self._lora(projection, index, x, hidden, batch, workspace, adds=True)
            self._side.join()
        else:
            self._add_dense(projection, index, x, delta, batch, workspace)
        return delta

    def _lora(
        self,
        projection: str,
        index: int,
        x: Tensor | None,
        y: Tensor,
        batch: GpuBatch,
        workspace: GpuWorkspace,
        *,
        adds: bool,
    ) -> None:
        """Both of LoRA's products, added to y or written there."""
        assert batch.lora is not None
        assert x is not None
        lora, shape, shrunk = batch.lora, self._projections[projection], workspace.shrunk[: batch.num_rows]
        place = (lora.row_tiles, index, shape, lora.tile_rows)
        lora_apply(x, y, shrunk, workspace.lora, lora.tables, *place, adds=adds)

    def _norm(
        self,
        hidden: Tensor,
        delta: Tensor | None,
        weight: Tensor,
        reader: GpuLinear,
        batch: GpuBatch,
        workspace: GpuWorkspace,
    ) -> LinearInput:
        """hidden += delta, then its norm in the formats that `reader` and LoRA read."""
        dense = None
        if batch.lora is not None or not reader.takes_int8:
            dense = workspace.normed[: hidden.shape[0]]
        quantized = workspace.quantized(*hidden.shape) if reader.takes_int8 else None
        rms_norm(hidden, delta, weight, self.config.rms_norm_eps, dense, quantized)
        return LinearInput(dense, quantized)

    def _logits(
        self, hidden: Tensor, delta: Tensor | None, batch: GpuBatch, workspace: GpuWorkspace
    ) -> Tensor:
        assert delta is not None
        if batch.logit_rows is not None:
            count = batch.logit_rows.shape[0]
            if count == 0:
                return workspace.logits[:0]
            hidden = torch.index_select(hidden, 0, batch.logit_rows, out=workspace.logit_hidden[:count])
            delta = torch.index_select(delta, 0, batch.logit_rows, out=workspace.logit_delta[:count])
        head = self._weights.lm_head
        dense = None if head.takes_int8 else workspace.normed[: hidden.shape[0]]
        quantized = workspace.quantized(*hidden.shape) if head.takes_int8 else None
        rms_norm(hidden, delta, self._weights.final_norm, self.config.rms_norm_eps, dense, quantized)
        out, logits = workspace.head_out[: hidden.shape[0]], workspace.logits[: hidden.shape[0]]
        head(LinearInput(dense, quantized), out)
        logits.copy_(out)
        return logits
