"""What one forward pass on the GPU reads besides weights: device tensors whose sizes are few in number."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from loraplex_server.kernels.lora_tables import LoraTables


@dataclass(frozen=True, slots=True)
class GpuBatch:
    """Decode rows first, then the rows of prefill chunks; the last rows may be padding.

    A padding row has token 0, position 0, KV slot -1 and no context, and is in no tile. Rows of prefills may lie among
    the first `num_decodes` too: without a context there, they get zeros, and then what prefill attention writes.
    """

    token_ids: Tensor  # [n] int32; -1 - i: what the step before sampled for its row i
    positions: Tensor  # [n] int32
    kv_slots: Tensor  # [n] int32: block · block_size + offset; -1 writes nothing
    num_decodes: int  # rows that go through the attention of decodes
    block_tables: Tensor  # [sequences, max_blocks] int32, the decodes' first
    context_lengths: Tensor  # [num_decodes] int32
    max_context: int  # of the decodes, rounded up; decides how the attention is cut
    query_tiles: Tensor | None  # [tiles, 4] int32, see kernels.prefill_attention
    logit_rows: Tensor | None  # [m] int64 rows whose logits are wanted; None: all
    lora: GpuLoraBatch | None

    @property
    def num_rows(self) -> int:
        return self.token_ids.shape[0]


@dataclass(frozen=True, slots=True)
class GpuLoraBatch:
    """Which rows carry which adapter."""

    tables: LoraTables
    row_tiles: Tensor  # [tiles, 4] int32, see kernels.lora_tables; they cover all rows but padding
    tile_rows: int
    sole_slot: int | None = None  # of all rows, where they are many enough for `kernels.lora_dense`
