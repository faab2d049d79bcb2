"""The buffers between the kernels of a forward pass, allocated once."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from loraplex_server.kernels.decode_attention import num_parts
from loraplex_server.kernels.lora_cuda import plan_ints
from loraplex_server.kernels.lora_scratch import LoraScratch, max_rank_groups, num_splits
from loraplex_server.kernels.lora_tables import LARGE_TILE_ROWS, SMALL_TILE_ROWS, SMALL_TILES_UP_TO
from loraplex_server.kernels.quantize import QuantizedRows
from loraplex_server.kernels.sampling import SampleScratch
from loraplex_server.model.config import DecoderConfig
from loraplex_server.model.projections import PROJECTIONS


class GpuWorkspace:
    """One pass at a time uses it; a later one overwrites what an earlier one left."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        max_rows: int,
        max_decodes: int,
        max_running: int,
        max_context: int,
        max_lora_rank: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Of one pass.

        max_rows     at most max_decodes of which decode, and as many have their logits computed
        max_running  sequences, each of which may have its tokens counted
        """

        def buffer(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        query = config.num_heads * config.head_dim
        widest = max(config.hidden_size, config.intermediate_size, query)
        self.token_ids = buffer(max_rows, dtype=torch.int32)
        self.hidden = buffer(max_rows, config.hidden_size)
        self.delta = buffer(max_rows, config.hidden_size)
        self.normed = buffer(max_rows, config.hidden_size)
        self.qkv = buffer(max_rows, query + 2 * config.num_kv_heads * config.head_dim)
        self.attended = buffer(max_rows, query)
        self.gate_up = buffer(max_rows, 2 * config.intermediate_size)
        self.activated = buffer(max_rows, config.intermediate_size)
        self._quantized = buffer(max_rows * widest, dtype=torch.int8)
        self._scales = buffer(max_rows, dtype=torch.float32)
        parts = max_decodes * config.num_heads * num_parts(max_context)
        self.part_out = buffer(parts * config.head_dim, dtype=torch.float32)
        self.part_state = buffer(parts * 2, dtype=torch.float32)
        self.rank_stride = 3 * max_lora_rank
        splits = [num_splits(features, SMALL_TILE_ROWS) for features in (config.hidden_size, query, widest)]
        large_tile_splits = num_splits(config.hidden_size, LARGE_TILE_ROWS)
        few_rows = max(max_decodes, min(max_rows, SMALL_TILES_UP_TO))
        num_shrink_parts = self.rank_stride * max(max(splits) * few_rows, large_tile_splits * max_rows)
        num_counters = max_rows * max_rank_groups(self.rank_stride)  # each row may be a tile of its own
        num_plan_ints = plan_ints(config.num_layers, len(PROJECTIONS), few_rows)
        self.lora = LoraScratch.allocate(num_shrink_parts, num_counters, num_plan_ints, device)
        self.shrunk = buffer(max_rows, self.rank_stride)
        self._lora_delta = buffer(max_rows * max(self.qkv.shape[1], self.gate_up.shape[1]))
        self.logit_hidden = buffer(max_decodes, config.hidden_size)
        self.logit_delta = buffer(max_decodes, config.hidden_size)
        self.head_out = buffer(max_decodes, config.vocab_size)
        self.logits = buffer(max_decodes, config.vocab_size, dtype=torch.float32)
        self.token_counts = buffer(max_running, config.vocab_size, dtype=torch.int32)
        self.sampling = SampleScratch.allocate(max_decodes, config.vocab_size, device)

    def quantized(self, num_rows: int, features: int) -> QuantizedRows:
        """A place for quantized rows; the next one overwrites it."""
        return QuantizedRows(
            self._quantized[: num_rows * features].view(num_rows, features), self._scales[:num_rows]
        )

    def lora_delta(self, num_rows: int, features: int) -> Tensor:
        """A place for what LoRA adds to a projection's rows; the next one overwrites it."""
        return self._lora_delta[: num_rows * features].view(num_rows, features)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        buffers = [value for value in vars(self).values() if isinstance(value, Tensor)]
        scratch = [getattr(part, f.name) for part in (self.sampling, self.lora) for f in fields(part)]
        return sum(tensor.nbytes for tensor in (*buffers, *scratch))
