"""Products of more than 128 rows: the cut whose blocks fill the multiprocessors best, wave after wave.

A block takes some outputs of some rows. All blocks of a cut take about as long, so a product takes as many times that
as there are waves of blocks, the last of them counted whole: of several sizes of a block the one that leaves the
fewest multiprocessors idle in the last wave is the quickest, though others would do more work in the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loraplex_server.kernels.product_plan import MULTIPROCESSORS, ProductPlan, product_plan

_SHARING_COST = 1.2  # two blocks that share the inputs out take so many times half of what one takes


@dataclass(frozen=True, slots=True)
class Cut:
    """A size of a block, and what one costs."""

    plan: ProductPlan
    microseconds: float  # of a block over 4096 inputs, when every multiprocessor has one; measured on an H200
    resident: int = 1  # blocks that a multiprocessor runs at once, in as many times the time of one

    def cost(self, out_features: int, rows: int) -> float:
        """Microseconds of a product with 4096 inputs."""
        columns, parts = self.plan.grid(out_features, rows)
        waves = -(-columns * parts // (MULTIPROCESSORS * self.resident))
        return waves * self.resident * self.microseconds / parts * (_SHARING_COST if parts > 1 else 1.0)


def best_cut(cuts: Sequence[Cut], out_features: int, rows: int) -> ProductPlan:
    """The one that costs least; the first of several."""
    return min(cuts, key=lambda cut: cut.cost(out_features, rows)).plan


def _nf4(rows: int, wn: int, sk: int, ks: int, stages: int, microseconds: float) -> Cut:
    plan = product_plan("nf4_wide.cu", rows, mt=1, wn=wn, wk=1, sk=sk, ks=ks, stages=stages)
    return Cut(plan, microseconds)


def _int8(rows: int, wn: int, wk: int, sk: int, stages: int, microseconds: float, resident: int = 1) -> Cut:
    plan = product_plan("int8_wide.cu", rows, mt=1, wn=wn, wk=wk, sk=sk, stages=stages)
    return Cut(plan, microseconds, resident)


NF4_CUTS = (
    _nf4(128, wn=2, sk=1, ks=4, stages=2, microseconds=30),
    _nf4(128, wn=2, sk=2, ks=4, stages=2, microseconds=30),
    _nf4(128, wn=3, sk=1, ks=4, stages=2, microseconds=40),
    _nf4(128, wn=3, sk=2, ks=4, stages=2, microseconds=40),
    _nf4(128, wn=4, sk=1, ks=2, stages=2, microseconds=55),
    _nf4(192, wn=2, sk=1, ks=2, stages=3, microseconds=43),
    _nf4(192, wn=2, sk=2, ks=2, stages=3, microseconds=43),
    _nf4(192, wn=3, sk=1, ks=2, stages=2, microseconds=58),
    _nf4(192, wn=3, sk=2, ks=2, stages=2, microseconds=58),
    _nf4(256, wn=2, sk=1, ks=2, stages=2, microseconds=51),
)
INT8_CUTS = (
    _int8(128, wn=2, wk=1, sk=1, stages=3, microseconds=15, resident=2),
    _int8(128, wn=2, wk=2, sk=1, stages=3, microseconds=17),
    _int8(128, wn=2, wk=2, sk=2, stages=3, microseconds=17),
    _int8(128, wn=3, wk=1, sk=1, stages=4, microseconds=23),
    _int8(128, wn=3, wk=1, sk=2, stages=4, microseconds=23),
    _int8(192, wn=1, wk=2, sk=2, stages=3, microseconds=16),
    _int8(192, wn=2, wk=1, sk=1, stages=4, microseconds=24),
    _int8(192, wn=2, wk=1, sk=2, stages=4, microseconds=24),
    _int8(192, wn=3, wk=1, sk=1, stages=4, microseconds=32),
    _int8(192, wn=3, wk=1, sk=2, stages=4, microseconds=32),
)
