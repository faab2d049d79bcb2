"""How a product is cut over the multiprocessors of a GPU; `product_choice` says which cut is taken when.

`parts` of a plan, the pieces into which the inputs are cut, decides the order in which a row is summed.
"""

from __future__ import annotations

from dataclasses import dataclass

MULTIPROCESSORS = 132
BLOCK_OUTPUTS = 16  # of one warp's tile
_RECORD_BYTES = 576
_TABLE_BYTES = 32768


@dataclass(frozen=True, slots=True)
class ProductPlan:
    """The compile-time parameters of one kernel, named as in the CUDA sources."""

    source: str
    nt: int  # row tiles of 8
    mt: int  # output tiles of 16 per warp, or of 64 per warpgroup in the wide kernel
    wn: int  # warps, or warpgroups, side by side over the outputs
    wk: int  # ... that share the inputs out
    sk: int  # blocks that share the inputs out
    ks: int  # tiles per pipeline stage; even in nf4_wide.cu
    stages: int
    rows_held: int
    is_exact: bool = False

    @property
    def is_wide(self) -> bool:
        """Made for warpgroups and the tensor memory accelerator."""
        return self.source.endswith("_wide.cu")

    @property
    def is_int8(self) -> bool:
        return self.source.startswith("int8")

    @property
    def k_tile(self) -> int:
        """Inputs of one tile."""
        return 128 if self.is_int8 and self.is_wide else 64

    @property
    def function(self) -> str:
        return "int8_product" if self.is_int8 else "nf4_product"

    @property
    def parts(self) -> int:
        return self.wk * self.sk

    @property
    def threads(self) -> int:
        return self.wn * self.wk * (128 if self.is_wide else 32)

    @property
    def outputs(self) -> int:
        """Per block."""
        return self.wn * self.mt * (64 if self.is_wide else BLOCK_OUTPUTS)

    @property
    def shared_bytes(self) -> int:
        """Dynamic: the stages of weights and of x, then the sums of the parts in the same place; behind, barriers."""
        warps = self.threads // 32
        barriers = 0
        if self.is_wide and self.is_int8:
            stage = self.wk * (self.wn * self.mt * 8192 + self.nt * 1024)
            barriers = 2 * self.wk
        elif self.is_wide:
            stage = warps * self.mt * self.ks * _RECORD_BYTES + self.wk * self.ks * self.nt * 1024
            barriers = warps + 2 * self.wk
        elif self.is_int8:
            stage = warps * self.mt * self.ks * 1024 + self.wk * self.rows_held * self.ks * 64
        else:
            stage = warps * self.mt * self.ks * _RECORD_BYTES + self.wk * self.rows_held * self.ks * 128
            barriers = warps
        sums = self.wk * self.outputs // BLOCK_OUTPUTS * self.nt * 512 if self.parts > 1 else 0
        return max(stage * self.stages, sums) + barriers * self.stages * 8

    @property
    def static_bytes(self) -> int:
        """Shared memory that the kernel has besides."""
        return 0 if self.is_int8 else _TABLE_BYTES

    @property
    def defines(self) -> dict[str, int]:
        return {
            "NT": self.nt,
            "MT": self.mt,
            "WN": self.wn,
            "WK": self.wk,
            "SK": self.sk,
            "KS": self.ks,
            "STAGES": self.stages,
            "XR": self.rows_held,
            "EXACT": int(self.is_exact),
            "MINB": 1,
        }

    def grid(self, out_features: int, num_rows: int) -> tuple[int, int]:
        """Blocks side by side, of all outputs of all groups of rows, and blocks that share the inputs out."""
        return -(-out_features // self.outputs) * -(-num_rows // (8 * self.nt)), self.sk


def product_plan(
    source: str,
    bucket: int,
    *,
    mt: int,
    wn: int,
    wk: int,
    sk: int = 1,
    ks: int = 1,
    stages: int,
) -> ProductPlan:
    """For up to `bucket` rows in each group of blocks; the rest as in `ProductPlan`."""
    nt = max(1, bucket // 8)
    return ProductPlan(source, nt, mt, wn, wk, sk, ks, stages, bucket)
