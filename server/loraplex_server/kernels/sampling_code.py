"""Pieces of the kernels that draw a token: the race, order keys, and the search for the end of the kept tokens.

Masses are relative to the largest logit's. Order keys are the logits as integers in the same order.
"""

from __future__ import annotations

from loraplex_server.kernels.triton_runtime import Block, Pointer, Scalar, constexpr, jit, tl


@jit
def order_key(x: Block) -> Block:
    """int32 in the order of the fp32, above -0x7FFFFFFF; both zeros are one value."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@jit
def _mass_of_key(key: Scalar, top: Scalar, temperature: Scalar) -> Scalar:
    """The mass, in fp64, of a token with this order key."""
    x = (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return tl.exp((x - top) / temperature).to(tl.float64)


@jit
def race_key(seed: Scalar, index: Scalar) -> Scalar:
    """uint64 that a draw's exponentials are hashed under: SplitMix64, as in `loraplex_server.engine.sampler`."""
    z = seed.to(tl.uint64) * 0xD1342543DE82EF95 + (index + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
    for _ in tl.static_range(2):
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB
        z = z ^ (z >> 31)
    return z


@jit
def exponentials(key: Scalar, ids: Block) -> Block:
    """The numbers of `loraplex_server.engine.sampler.exponentials`, to some units in the last place."""
    x = ids.to(tl.uint32) * 0x9E3779B1 + (key & 0xFFFFFFFF).to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = ((x ^ (x >> 15)) + (key >> 32).to(tl.uint32)) * 0x846CA68B
    x = x ^ (x >> 16)
    uniform = ((x & 0x7FFFFFFF).to(tl.int32).to(tl.float32) + 0.5) * 4.656612873077393e-10  # 2**-31
    uniform = tl.minimum(uniform, 0.999999940395355225)  # 1 - 2**-24
    # -log1p(-uniform): what the rounding of 1 - uniform does to the logarithm, the quotient undoes.
    rest = 1.0 - uniform
    lost = tl.where(rest == 1.0, 1.0, 1.0 - rest)
    return tl.where(rest == 1.0, uniform, -tl.log(rest) * (uniform / lost))


@jit
def race(mass: Block, is_kept: Block, ids: Block, key: Scalar) -> tuple[Scalar, Scalar]:
    """(speed, id) of the first of the kept tokens to arrive; the speed is below 0 if none is kept.

    The speed is mass / exponential: a quotient has an error of some units in the last place wherever it lies, while
    the difference of their logarithms would lose as many digits as it has before the point.
    """
    speeds = tl.where(is_kept, mass / exponentials(key, ids), -1.0)
    fastest = tl.max(speeds, axis=0)
    return fastest, tl.min(tl.where(speeds == fastest, ids, 0x7FFFFFFF), axis=0)


@jit
def pick_probes(row_ptr: Pointer, VOCAB: constexpr, SAMPLE: constexpr, PROBES: constexpr) -> Block:
    """Order keys [PROBES] that part the row in about equal numbers of tokens, from the largest on.

    They are quantiles of a sample, so that how the logits are spread does not matter; before the first of them lie
    some VOCAB / SAMPLE tokens. The last is below every token.
    """
    places = tl.arange(0, SAMPLE)
    keys = order_key(tl.load(row_ptr + (places * VOCAB) // SAMPLE))
    others = order_key(tl.load(row_ptr + (places * VOCAB) // SAMPLE))
    is_before = (others[:, None] > keys[None, :]) | (
        (others[:, None] == keys[None, :]) & (places[:, None] < places[None, :])
    )
    ranks = tl.sum(is_before.to(tl.int32), axis=0)
    probes = tl.arange(0, PROBES)
    is_picked = ranks[:, None] == (probes * (SAMPLE - 1) // (PROBES - 2))[None, :]
    return tl.where(probes < PROBES - 1, tl.sum(tl.where(is_picked, keys[:, None], 0), axis=0), -0x7FFFFFFF)


@jit
def load_masses(
    values_ptr: Pointer, num_values: Scalar, first: Scalar, top: Scalar, temperature: Scalar, BLOCK: constexpr
) -> tuple[Block, Block, Block]:
    """(places, order keys, masses) of one step; past the end no mass and a key below every other."""
    places = first + tl.arange(0, BLOCK)
    mask = places < num_values
    x = tl.load(values_ptr + places, mask=mask, other=-float("inf"))
    mass = tl.exp((x - top) / temperature)
    return places, tl.where(mask, order_key(x), -0x80000000), tl.where(mask, mass, 0.0)


@jit
def sums_from(
    values_ptr: Pointer,
    first: Scalar,
    end: Scalar,
    probe_keys: Block,
    limit_key: Scalar,
    top: Scalar,
    temperature: Scalar,
    BLOCK: constexpr,
    PROBES: constexpr,
) -> tuple[Block, Block]:
    """(tokens, their mass in fp32), each [PROBES], of places [first, end) with a key in [probe, limit_key)."""
    # One sum per thread until the end: a reduction per step would cost more than the step.
    count_sums = tl.zeros((BLOCK, PROBES), dtype=tl.int32)
    mass_sums = tl.zeros((BLOCK, PROBES), dtype=tl.float32)
    for start in range(first, end, BLOCK):
        _places, keys, mass = load_masses(values_ptr, end, start, top, temperature, BLOCK)
        counted = (keys[:, None] >= probe_keys[None, :]) & (keys < limit_key)[:, None]
        count_sums += counted.to(tl.int32)
        mass_sums += tl.where(counted, mass[:, None], 0.0)
    return tl.sum(count_sums, axis=0), tl.sum(mass_sums, axis=0)


@jit
def bounds(
    counts: Block,  # [PROBES] tokens from each probe on
    masses: Block,  # [PROBES] fp64, their mass
    top_k: Scalar,
    top_p: Scalar,
) -> tuple[Block, Block]:
    """Of each probe: whether all tokens from it on are kept, and whether no token below it is looked at."""
    has_room = (top_k == 0) | (counts <= top_k)
    # Of the total that top-p refers to, at least this much is known: all of it, or what top-k is sure to keep.
    total = tl.max(tl.where(has_room, masses, 0.0), axis=0)
    limit = tl.where(top_p < 1.0, top_p.to(tl.float64) * total, float("inf"))
    is_kept = has_room & (masses < limit)
    is_enough = tl.where(top_k > 0, counts >= top_k, masses >= limit)
    return is_kept, is_enough | (counts == tl.max(counts, axis=0))


@jit
def _largest_key(
    values_ptr: Pointer,
    num_values: Scalar,
    low: Scalar,  # a key that is known to reach the target
    limit_key: Scalar,
    top: Scalar,
    temperature: Scalar,
    count_target: Scalar,
    mass_target: Scalar,
    BLOCK: constexpr,
) -> Scalar:
    """The largest key in [low, limit_key) from which on `count_target` tokens and `mass_target` are reached."""
    low = low.to(tl.int64)
    high = limit_key.to(tl.int64) - 1
    while low < high:
        # The first probe is next to `low`, where the search ends at once if many equal logits are there.
        step = (high - low + 15) // 16
        probes = low + 1 + step * tl.arange(0, 16)
        probe_keys = tl.minimum(probes, high).to(tl.int32)
        counts, masses = sums_from(
            values_ptr, 0, num_values, probe_keys, limit_key, top, temperature, BLOCK, 16
        )
        # Counts and masses fall from probe to probe, so the probes that reach the target are the first ones.
        reached = (probes <= high) & (counts >= count_target) & (masses.to(tl.float64) >= mass_target)
        num_reached = tl.sum(reached.to(tl.int32), axis=0).to(tl.int64)
        high = tl.minimum(high, low + step * num_reached)
        low = tl.where(num_reached > 0, low + 1 + step * (num_reached - 1), low)
    return low.to(tl.int32)


@jit
def _around_key(
    values_ptr: Pointer,
    num_values: Scalar,
    key: Scalar,
    limit_key: Scalar,
    top: Scalar,
    temperature: Scalar,
    BLOCK: constexpr,
) -> tuple[Scalar, Scalar, Scalar]:
    """(tokens with a key in (key, limit_key), their mass in fp64, tokens at the key)."""
    above_sums = tl.zeros((BLOCK,), dtype=tl.int32)
    equal_sums = tl.zeros((BLOCK,), dtype=tl.int32)
    mass_sums = tl.zeros((BLOCK,), dtype=tl.float64)
    for first in range(0, num_values, BLOCK):
        _places, keys, mass = load_masses(values_ptr, num_values, first, top, temperature, BLOCK)
        is_above = (keys > key) & (keys < limit_key)
        above_sums += is_above.to(tl.int32)
        equal_sums += (keys == key).to(tl.int32)
        mass_sums += tl.where(is_above, mass, 0.0).to(tl.float64)
    return tl.sum(above_sums, axis=0), tl.sum(mass_sums, axis=0), tl.sum(equal_sums, axis=0)


@jit
def last_kept(
    values_ptr: Pointer,
    num_values: Scalar,
    low: Scalar,
    limit_key: Scalar,
    count_before: Scalar,
    mass_before: Scalar,
    total: Scalar,  # mass of the row, in fp64
    top: Scalar,
    temperature: Scalar,
    top_k: Scalar,
    top_p: Scalar,
    BLOCK: constexpr,
) -> tuple[Scalar, Scalar]:
    """(key, quota): top-k and top-p keep what is above a key and, by id, the first `quota` tokens at that key.

    It is looked for in [low, limit_key), with `count_before` tokens of `mass_before` from `limit_key` on.
    """
    key = low
    quota = tl.full((), 0x7FFFFFFF, dtype=tl.int32)
    if top_k > 0:
        target = top_k - count_before
        key = _largest_key(values_ptr, num_values, low, limit_key, top, temperature, target, -1.0, BLOCK)
        above, mass, equals = _around_key(values_ptr, num_values, key, limit_key, top, temperature, BLOCK)
        quota = tl.minimum(equals, target - above)
        total = mass_before + mass + _mass_of_key(key, top, temperature) * quota
    if top_p < 1.0:
        # A token is kept while the mass before it is below this.
        limit = top_p.to(tl.float64) * total - mass_before
        end = _largest_key(values_ptr, num_values, key, limit_key, top, temperature, 0, limit, BLOCK)
        above, mass, equals = _around_key(values_ptr, num_values, end, limit_key, top, temperature, BLOCK)
        each = tl.maximum(_mass_of_key(end, top, temperature), 1e-300)
        needed = tl.maximum(tl.minimum(tl.ceil((limit - mass) / each), 1e9), 0.0).to(tl.int32)
        # The most likely token stays, whatever top_p is.
        needed = tl.maximum(needed, tl.where(count_before + above == 0, 1, 0))
        quota = tl.minimum(tl.where(end == key, quota, equals), needed)
        key = end
    return key, quota
