"""How a product is cut over the multiprocessors of a GPU: measured on Hopper, see docs/performance-products.md.

`parts` of a plan, the pieces into which the inputs are cut, decides the order in which a row is summed. It depends on
the weight's shape and on the kernel, not on the number of rows within it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

ROW_BUCKETS = (1, 8, 16, 32, 64, 96, 128)
MAX_ROWS = ROW_BUCKETS[-1]  # above, arithmetic outweighs reading the weight
_MULTIPROCESSORS = 132
_BLOCK_OUTPUTS = 16  # of one warp's tile
_RECORD_BYTES = 576
_TABLE_BYTES = 32768
_LONG_INPUTS = (
    8192  # of a narrow int8 weight at 17..32 rows: at 4096 the plan of more rows loses, at 14336 it wins
)


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
        return self.wn * self.mt * (64 if self.is_wide else _BLOCK_OUTPUTS)

    @property
    def shared_bytes(self) -> int:
        """Dynamic: the stages of weights and of x, then the sums of the parts in the same place."""
        warps = self.threads // 32
        if self.is_wide and self.is_int8:
            stage = self.wk * (self.wn * self.mt * 8192 + self.nt * 1024 + 16)
        elif self.is_wide:
            stage = warps * (self.mt * self.ks * _RECORD_BYTES + 8) + self.wk * (
                self.ks * self.nt * 1024 + 16
            )
        elif self.is_int8:
            stage = warps * self.mt * self.ks * 1024 + self.wk * self.rows_held * self.ks * 64
        else:
            stage = warps * (self.mt * self.ks * _RECORD_BYTES + 8) + self.wk * self.rows_held * self.ks * 128
        sums = self.wk * self.outputs // _BLOCK_OUTPUTS * self.nt * 512
        return max(stage * self.stages, sums)

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
        return -(-out_features // self.outputs) * -(-num_rows // self.rows_held), self.sk


def nf4_plan(out_features: int, rows: int, is_exact: bool) -> ProductPlan:
    """For 1..128 rows."""
    bucket = row_bucket(rows)
    if bucket <= 16:
        plan = _nf4_narrow(out_features, bucket)
    else:
        plan = _nf4_wide(_tiles_per_multiprocessor(out_features), bucket)
    return replace(plan, is_exact=is_exact)


def int8_plan(out_features: int, in_features: int, rows: int) -> ProductPlan:
    """For 1..128 rows. Sums of integers are exact, so `parts` may vary."""
    bucket = row_bucket(rows)
    share = _tiles_per_multiprocessor(out_features)
    if bucket == 1 or (bucket == 8 and share <= 2):
        return _plan("int8.cu", bucket, mt=1, wn=1, wk=4, ks=4, stages=4)
    if share > 2:
        # From 2 rows on: all blocks start at once, which leaves what runs beside them its turn.
        return _int8_wide(share, max(bucket, 32))
    if bucket == 32 and share == 2 and in_features >= _LONG_INPUTS:
        return _int8_wide(share, 64)
    if bucket == 32:
        return _plan("int8.cu", bucket, mt=1, wn=2, wk=4, ks=2, stages=4)
    if bucket <= 32:
        return _plan("int8.cu", bucket, mt=1, wn=2, wk=4, ks=4, stages=3)
    return _int8_wide(share, bucket)


def _int8_wide(share: int, bucket: int) -> ProductPlan:
    """`share`: tiles of outputs for each multiprocessor. As many stages as its shared memory holds, at 32 rows and in
    the narrowest weights one less: LoRA's blocks find room beside, and the product itself is no slower."""
    source = "int8_wide.cu"
    if share > 8:
        return _plan(source, bucket, mt=1, wn=4, wk=1, stages={32: 5, 64: 5, 96: 5, 128: 4}[bucket])
    if share > 3:
        return _plan(source, bucket, mt=1, wn=2, wk=2, stages={32: 4, 64: 4, 96: 3, 128: 3}[bucket])
    if share == 3:
        wk, stages = {32: (4, 3), 64: (3, 4), 96: (2, 5), 128: (2, 4)}[bucket]
        return _plan(source, bucket, mt=1, wn=1, wk=wk, stages=stages)
    return _plan(source, bucket, mt=1, wn=1, wk=2, sk=2, stages={64: 5, 96: 5, 128: 4}[bucket])


def row_bucket(rows: int) -> int:
    """The number of rows that a kernel is compiled for: the next of `ROW_BUCKETS`."""
    return next(bucket for bucket in ROW_BUCKETS if rows <= bucket)


def _nf4_narrow(out_features: int, bucket: int) -> ProductPlan:
    """Up to 16 rows: as many parts as give every multiprocessor its share of a narrow weight."""
    share = _tiles_per_multiprocessor(out_features)
    if share == 3:
        mt, wn, ks = {1: (2, 1, 4), 8: (2, 1, 2), 16: (1, 3, 2)}[bucket]
        return _plan("nf4.cu", bucket, mt=mt, wn=wn, wk=8, ks=ks, stages=2)
    if share <= 2:
        # Sixteen parts are quicker by themselves, but leave LoRA no registers.
        mt, wn, ks, stages = {1: (1, 1, 4, 2), 8: (2, 1, 2, 3), 16: (1, 2, 2, 2)}[bucket]
        return _plan("nf4.cu", bucket, mt=mt, wn=wn, wk=8, ks=ks, stages=stages)
    if share <= 8:
        return _plan("nf4.cu", bucket, mt=2, wn=-(-share // 2), wk=4, ks=2, stages=3)
    return _plan("nf4.cu", bucket, mt=2, wn=_even_width(out_features), wk=2, ks=2, stages=3)


def _nf4_wide(share: int, bucket: int) -> ProductPlan:
    """17..128 rows. `share`: tiles of outputs for each multiprocessor; a block's outputs must pay for its copy of x."""
    source = "nf4_wide.cu"
    if share > 8:
        ks, stages = (2, 3) if bucket == 128 else (4, 2)
        return _plan(source, bucket, mt=1, wn=4, wk=1, ks=ks, stages=stages)
    if share > 3:
        return _plan(source, bucket, mt=1, wn=2, wk=2, ks=2, stages=2)
    if share == 3:
        wn, wk, sk, ks = {32: (2, 2, 2, 4), 64: (1, 4, 1, 2), 96: (1, 3, 1, 2), 128: (2, 2, 2, 2)}[bucket]
        return _plan(source, bucket, mt=1, wn=wn, wk=wk, sk=sk, ks=ks, stages=2)
    wk, ks = {32: (3, 4), 64: (4, 2), 96: (3, 2), 128: (2, 2)}[bucket]
    return _plan(source, bucket, mt=1, wn=1, wk=wk, sk=2, ks=ks, stages=2)


def _tiles_per_multiprocessor(out_features: int) -> int:
    return -(-out_features // (_BLOCK_OUTPUTS * _MULTIPROCESSORS))


def _even_width(out_features: int) -> int:
    """Pairs of tiles per block, of 4..9, that leave the busiest multiprocessor with the least."""
    return min((7, 8, 6, 9, 5, 4), key=lambda width: _busiest(out_features, 2 * _BLOCK_OUTPUTS * width))


def _busiest(out_features: int, block_outputs: int) -> int:
    """Outputs of the multiprocessor that has the most, with one block at a time on each."""
    blocks = -(-out_features // block_outputs)
    return -(-blocks // _MULTIPROCESSORS) * block_outputs


def _plan(
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
    nt = max(1, bucket // 8)
    return ProductPlan(source, nt, mt, wn, wk, sk, ks, stages, bucket)
