"""Which cut of a product is taken for a weight and a number of rows: measured, see docs/performance-products.md."""

from __future__ import annotations

from dataclasses import replace

from loraplex_server.kernels.product_plan import BLOCK_OUTPUTS, MULTIPROCESSORS, ProductPlan, product_plan
from loraplex_server.kernels.product_waves import INT8_CUTS, NF4_CUTS, best_cut

ROW_BUCKETS = (1, 8, 16, 32, 64, 96, 128)
"""Rows up to which there is one group of blocks, and a plan for each number; for more see `product_waves`."""
NF4_MAX_ROWS = 768  # above, to dequantize the weight once costs less than to do so for each group of rows
INT8_MAX_ROWS = 512  # above, the Triton kernel is as quick on the four of a layer together
_LONG_INPUTS = 8192  # of a narrow int8 weight at 17..32 rows: at 4096 the wide kernel loses, at 14336 it wins


def planned_rows(max_rows: int) -> list[int]:
    """Numbers of rows that lead to every plan that a weight can ask for with up to `max_rows`."""
    step = 64  # what all sizes of a group beyond 128 rows are multiples of
    return [*ROW_BUCKETS, *range(ROW_BUCKETS[-1] + step, max_rows + 1, step)]


def nf4_plan(out_features: int, rows: int, is_exact: bool) -> ProductPlan:
    """The order in which a row is summed is the same for 1..16 rows, and between each other two of `ROW_BUCKETS`; above
    the last of them it varies with the number of rows."""
    if rows > ROW_BUCKETS[-1]:
        return replace(best_cut(NF4_CUTS, out_features, rows), is_exact=is_exact)
    bucket = row_bucket(rows)
    plan = _nf4_narrow(out_features, bucket) if bucket <= 16 else _nf4_wide(out_features, bucket)
    return replace(plan, is_exact=is_exact)


def int8_plan(out_features: int, in_features: int, rows: int) -> ProductPlan:
    """Sums of integers are exact, so `parts` may vary."""
    if rows > ROW_BUCKETS[-1]:
        return best_cut(INT8_CUTS, out_features, rows)
    bucket = row_bucket(rows)
    share = _tiles_per_multiprocessor(out_features)
    if bucket == 1 or (bucket == 8 and share <= 2):
        return product_plan("int8.cu", bucket, mt=1, wn=1, wk=4, ks=4, stages=4)
    if bucket == 8 and share == 3:
        return product_plan("int8.cu", bucket, mt=1, wn=3, wk=4, ks=4, stages=3)
    if share > 2:
        # From 2 rows on: all blocks start at once, which leaves what runs beside them its turn.
        return _int8_wide(out_features, max(bucket, 32))
    if bucket == 32 and share == 2 and in_features >= _LONG_INPUTS:
        return _int8_wide(out_features, bucket)
    if bucket == 32:
        return product_plan("int8.cu", bucket, mt=1, wn=2, wk=4, ks=2, stages=4)
    if bucket <= 32:
        return product_plan("int8.cu", bucket, mt=1, wn=2, wk=4, ks=4, stages=3)
    return _int8_wide(out_features, bucket)


def _int8_wide(out_features: int, bucket: int) -> ProductPlan:
    """As many stages as a multiprocessor's shared memory holds, at 32 rows and in the narrowest weights one less:
    LoRA's blocks find room beside, and the product itself is no slower."""
    source, share = "int8_wide.cu", _tiles_per_multiprocessor(out_features)
    if share > 8:
        stages = {32: 5, 64: 5, 96: 5, 128: 4}[bucket]
        return product_plan(source, bucket, mt=1, wn=_warpgroups(out_features), wk=1, stages=stages)
    if share > 3:
        return product_plan(source, bucket, mt=1, wn=2, wk=2, stages={32: 4, 64: 4, 96: 3, 128: 3}[bucket])
    if share == 3:
        wk, stages = {32: (4, 3), 64: (3, 4), 96: (2, 5), 128: (2, 4)}[bucket]
        return product_plan(source, bucket, mt=1, wn=1, wk=wk, stages=stages)
    return product_plan(source, bucket, mt=1, wn=1, wk=2, sk=2, stages=4 if bucket == 128 else 5)


def row_bucket(rows: int) -> int:
    """The number of rows that a kernel is compiled for: the next of `ROW_BUCKETS`."""
    return next(bucket for bucket in ROW_BUCKETS if rows <= bucket)


def _nf4_narrow(out_features: int, bucket: int) -> ProductPlan:
    """Up to 16 rows: as many parts as give every multiprocessor its share of a narrow weight."""
    share = _tiles_per_multiprocessor(out_features)
    if share == 3:
        mt, wn, ks = {1: (2, 1, 4), 8: (2, 1, 2), 16: (1, 3, 2)}[bucket]
        return product_plan("nf4.cu", bucket, mt=mt, wn=wn, wk=8, ks=ks, stages=2)
    if share <= 2:
        # Sixteen parts are quicker by themselves, but leave LoRA no registers.
        mt, wn, ks, stages = {1: (1, 1, 4, 2), 8: (2, 1, 2, 3), 16: (1, 2, 2, 2)}[bucket]
        return product_plan("nf4.cu", bucket, mt=mt, wn=wn, wk=8, ks=ks, stages=stages)
    if share <= 8:
        return product_plan("nf4.cu", bucket, mt=2, wn=-(-share // 2), wk=4, ks=2, stages=3)
    return product_plan("nf4.cu", bucket, mt=2, wn=_even_width(out_features), wk=2, ks=2, stages=3)


def _nf4_wide(out_features: int, bucket: int) -> ProductPlan:
    """17..128 rows; a block's outputs must pay for its copy of x."""
    source, share = "nf4_wide.cu", _tiles_per_multiprocessor(out_features)
    if share > 8:
        wn = _warpgroups(out_features)
        ks, stages = (2, 3) if bucket == 128 and wn == 4 else (4, 2)
        return product_plan(source, bucket, mt=1, wn=wn, wk=1, ks=ks, stages=stages)
    if share > 3:
        return product_plan(source, bucket, mt=1, wn=2, wk=2, ks=2, stages=2)
    if share == 3:
        wn, wk, sk, ks = {32: (2, 2, 2, 4), 64: (1, 4, 1, 2), 96: (1, 3, 1, 2), 128: (2, 2, 2, 2)}[bucket]
        return product_plan(source, bucket, mt=1, wn=wn, wk=wk, sk=sk, ks=ks, stages=2)
    wk, ks = {32: (3, 4), 64: (4, 2), 96: (3, 2), 128: (2, 2)}[bucket]
    return product_plan(source, bucket, mt=1, wn=1, wk=wk, sk=2, ks=ks, stages=2)


def _tiles_per_multiprocessor(out_features: int) -> int:
    return -(-out_features // (BLOCK_OUTPUTS * MULTIPROCESSORS))


def _warpgroups(out_features: int) -> int:
    """Of a block, 64 outputs each, that leave the busiest multiprocessor with the least."""
    return min((4, 3, 2), key=lambda width: _busiest(out_features, 64 * width))


def _even_width(out_features: int) -> int:
    """Pairs of tiles per block, of 4..9, that leave the busiest multiprocessor with the least."""
    return min((7, 8, 6, 9, 5, 4), key=lambda width: _busiest(out_features, 2 * BLOCK_OUTPUTS * width))


def _busiest(out_features: int, block_outputs: int) -> int:
    """Outputs of the multiprocessor that has the most, with one block at a time on each."""
    blocks = -(-out_features // block_outputs)
    return -(-blocks // MULTIPROCESSORS) * block_outputs
