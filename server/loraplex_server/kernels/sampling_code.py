"""Pieces of the kernel that draws a token: random delays, sums of masses, and searches among logits in any order.

Masses are relative to the largest logit's. Order keys are the logits as integers in the same order.
"""

from __future__ import annotations

from loraplex_server.kernels.triton_runtime import Block, Pointer, Scalar, constexpr, jit, tl


@jit
def _order_key(x: Block) -> Block:
    """int32 in the order of the fp32; both zeros are one value."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@jit
def draw_key(seed: Scalar, index: Scalar) -> tuple[Scalar, Scalar]:
    """Two words of 32 bits: SplitMix64, as `loraplex_server.engine.sampler.exponentials`."""
    z = seed.to(tl.uint64) * 0xD1342543DE82EF95 + (index + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
    for _ in tl.static_range(2):
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB
        z = z ^ (z >> 31)
    return (z & 0xFFFFFFFF).to(tl.uint32), (z >> 32).to(tl.uint32)


@jit
def _delays(ids: Block, low: Scalar, high: Scalar) -> Block:
    """Exp(1) of each id, as `loraplex_server.engine.sampler.exponentials`; `low` and `high` are the draw's key."""
    x = ids.to(tl.uint32) * 0x9E3779B1 + low
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = ((x ^ (x >> 15)) + high) * 0x846CA68B
    x = x ^ (x >> 16)
    u = ((x & 0x7FFFFFFF).to(tl.float32) + 0.5) * 4.656612873077393e-10  # 2**-31
    u = tl.minimum(u, 0.9999999403953552)  # 1 - 2**-24
    # -log(1 - u). The logarithm is exact to 2**-22 or so of 1, too little for the small ones, which win.
    series = u * (1 + u * (1 / 2 + u * (1 / 3 + u * (1 / 4 + u * (1 / 5 + u * (1 / 6 + u * (1 / 7)))))))
    return tl.where(u < 0.0625, series, -tl.log(1.0 - u))


@jit
def _masses(
    values_ptr: Pointer, num_values: Scalar, first: Scalar, top: Scalar, temperature: Scalar, BLOCK: constexpr
) -> tuple[Block, Block, Block]:
    """(places, order keys, masses relative to the largest) of one step; no key and no mass past the end."""
    places = first + tl.arange(0, BLOCK)
    mask = places < num_values
    x = tl.load(values_ptr + places, mask=mask, other=-float("inf"))
    mass = tl.exp((x - top) / temperature)
    return places, tl.where(mask, _order_key(x), -0x80000000), tl.where(mask, mass, 0.0)


@jit
def _mass_from(
    values_ptr: Pointer,
    num_values: Scalar,
    key: Scalar,
    top: Scalar,
    temperature: Scalar,
    BLOCK: constexpr,
) -> tuple[Scalar, Scalar]:
    """(tokens, their mass) with an order key of at least `key`."""
    count_sums = tl.zeros((BLOCK,), dtype=tl.int32)
    mass_sums = tl.zeros((BLOCK,), dtype=tl.float64)
    for first in range(0, num_values, BLOCK):
        _places, keys, mass = _masses(values_ptr, num_values, first, top, temperature, BLOCK)
        counted = keys >= key
        count_sums += counted.to(tl.int32)
        mass_sums += tl.where(counted, mass, 0.0).to(tl.float64)
    count = tl.sum(count_sums, axis=0)
    total = tl.sum(mass_sums, axis=0)
    return count, total


@jit
def _largest_key(
    values_ptr: Pointer,
    num_values: Scalar,
    low: Scalar,  # a key that is known to reach the target
    top: Scalar,
    temperature: Scalar,
    count_target: Scalar,
    mass_target: Scalar,
    BLOCK: constexpr,
) -> Scalar:
    """The largest key from which on there are at least `count_target` tokens with more mass than `mass_target`."""
    low = low.to(tl.int64)
    high = _order_key(top).to(tl.int64)
    while low < high:
        step = (high - low + 15) // 16  # so that the last probe is not before `high`
        probes = low + step * (tl.arange(0, 16) + 1)
        is_probed = probes <= high
        probe_keys = tl.minimum(probes, high).to(tl.int32)
        # One sum per thread until the end: a reduction per step would cost more than the step.
        count_sums = tl.zeros((BLOCK, 16), dtype=tl.int32)
        mass_sums = tl.zeros((BLOCK, 16), dtype=tl.float32)
        for first in range(0, num_values, BLOCK):
            _places, keys, mass = _masses(values_ptr, num_values, first, top, temperature, BLOCK)
            counted = keys[:, None] >= probe_keys[None, :]
            count_sums += counted.to(tl.int32)
            mass_sums += tl.where(counted, mass[:, None], 0.0)
        counts = tl.sum(count_sums, axis=0)
        masses = tl.sum(mass_sums, axis=0).to(tl.float64)
        # Counts and masses fall from probe to probe, so the probes that reach the target are the first ones.
        reached = is_probed & (counts >= count_target) & (masses > mass_target)
        num_reached = tl.sum(reached.to(tl.int32), axis=0).to(tl.int64)
        high = tl.minimum(high, low + step * (num_reached + 1) - 1)
        low = low + step * num_reached
    return low.to(tl.int32)


@jit
def _around_key(
    values_ptr: Pointer,
    num_values: Scalar,
    key: Scalar,
    top: Scalar,
    temperature: Scalar,
    BLOCK: constexpr,
) -> tuple[Scalar, Scalar, Scalar, Scalar]:
    """(tokens above a key, their mass, tokens at the key, mass of each)."""
    above, mass_above = _mass_from(values_ptr, num_values, key + 1, top, temperature, BLOCK)
    at_least, mass_at_least = _mass_from(values_ptr, num_values, key, top, temperature, BLOCK)
    equals = at_least - above
    return above, mass_above, equals, (mass_at_least - mass_above) / tl.maximum(equals, 1)


@jit
def first_to_arrive(
    values_ptr: Pointer,
    ids_ptr: Pointer,  # of the values where `is_gathered`; else value i is token i
    num_values: Scalar,
    is_gathered: Scalar,
    key: Scalar,
    quota: Scalar,
    low: Scalar,
    high: Scalar,
    top: Scalar,
    temperature: Scalar,
    min_p: Scalar,
    BLOCK: constexpr,
) -> Scalar:
    """The token that wins the race of `loraplex_server.engine.sampler.draw`.

    Those run that lie above an order key, and of those at it the first `quota`, with a relative mass of at least
    `min_p`.
    """
    seen = tl.zeros((), dtype=tl.int32)
    # One winner per thread until the end: a reduction per step would cost more than the step.
    best = tl.full((BLOCK,), -1.0, dtype=tl.float32)
    best_ids = tl.zeros((BLOCK,), dtype=tl.int32)
    for first in range(0, num_values, BLOCK):
        places, keys, mass = _masses(values_ptr, num_values, first, top, temperature, BLOCK)
        ids = tl.load(ids_ptr + places, mask=(places < num_values) & is_gathered, other=0)
        ids = tl.where(is_gathered, ids, places)
        runs = keys > key
        if quota > 0:
            equal = (keys == key).to(tl.int32)
            runs = runs | ((equal == 1) & (seen + tl.cumsum(equal, axis=0) <= quota))
            seen += tl.sum(equal, axis=0)
        speed = tl.where(runs & (mass >= min_p), mass / _delays(ids, low, high), -1.0)
        is_faster = speed > best
        best = tl.where(is_faster, speed, best)
        best_ids = tl.where(is_faster, ids, best_ids)
    fastest = tl.max(best, axis=0)
    return tl.min(tl.where(best == fastest, best_ids, 0x7FFFFFFF), axis=0)


@jit
def gather_candidates(
    row_ptr: Pointer,
    values_ptr: Pointer,
    ids_ptr: Pointer,
    top: Scalar,
    temperature: Scalar,
    top_k: Scalar,
    top_p: Scalar,
    VOCAB: constexpr,
    CAPACITY: constexpr,
    BLOCK: constexpr,
) -> tuple[Scalar, Scalar]:
    """Copy the tokens that truncation could keep, in the order of ids; returns (how many, mass of all tokens).

    Tokens within a few e-folds of the largest logit do in nearly every case: the first of four distances that holds
    enough of them is taken. 0 where none does, or where the candidates would not fit.
    """
    total = tl.zeros((), dtype=tl.float64)
    count_near = tl.zeros((), dtype=tl.int32)
    count_close = tl.zeros((), dtype=tl.int32)
    count_far = tl.zeros((), dtype=tl.int32)
    count_remote = tl.zeros((), dtype=tl.int32)
    mass_near = tl.zeros((), dtype=tl.float64)
    mass_close = tl.zeros((), dtype=tl.float64)
    mass_far = tl.zeros((), dtype=tl.float64)
    mass_remote = tl.zeros((), dtype=tl.float64)
    for first in range(0, VOCAB, BLOCK):
        ids = first + tl.arange(0, BLOCK)
        x = tl.load(row_ptr + ids, mask=ids < VOCAB, other=-float("inf"))
        distance = (top - x) / temperature
        mass = tl.exp(-distance)
        total += tl.sum(mass, axis=0).to(tl.float64)
        count_near += tl.sum((distance <= 3.0).to(tl.int32), axis=0)
        count_close += tl.sum((distance <= 6.0).to(tl.int32), axis=0)
        count_far += tl.sum((distance <= 9.0).to(tl.int32), axis=0)
        count_remote += tl.sum((distance <= 13.0).to(tl.int32), axis=0)
        mass_near += tl.sum(tl.where(distance <= 3.0, mass, 0.0), axis=0).to(tl.float64)
        mass_close += tl.sum(tl.where(distance <= 6.0, mass, 0.0), axis=0).to(tl.float64)
        mass_far += tl.sum(tl.where(distance <= 9.0, mass, 0.0), axis=0).to(tl.float64)
        mass_remote += tl.sum(tl.where(distance <= 13.0, mass, 0.0), axis=0).to(tl.float64)
    # A little more than the nucleus, for rounding. Behind top-k the nucleus is one of the k and needs no more.
    needed = tl.where((top_k > 0) | (top_p >= 1.0), 0.0, top_p * 1.00001).to(tl.float64) * total
    radius = tl.full((), 0.0, dtype=tl.float32)
    num_candidates = tl.zeros((), dtype=tl.int32)
    if (count_near >= top_k) & (mass_near >= needed):
        radius = 3.0
        num_candidates = count_near
    elif (count_close >= top_k) & (mass_close >= needed):
        radius = 6.0
        num_candidates = count_close
    elif (count_far >= top_k) & (mass_far >= needed):
        radius = 9.0
        num_candidates = count_far
    elif (count_remote >= top_k) & (mass_remote >= needed):
        radius = 13.0
        num_candidates = count_remote
    if num_candidates > CAPACITY:
        num_candidates = 0
    if num_candidates > 0:
        place = tl.zeros((), dtype=tl.int32)
        for first in range(0, VOCAB, BLOCK):
            ids = first + tl.arange(0, BLOCK)
            x = tl.load(row_ptr + ids, mask=ids < VOCAB, other=-float("inf"))
            is_kept = (top - x) / temperature <= radius
            places = place + tl.cumsum(is_kept.to(tl.int32), axis=0) - 1
            tl.store(values_ptr + places, x, mask=is_kept)
            tl.store(ids_ptr + places, ids, mask=is_kept)
            place += tl.sum(is_kept.to(tl.int32), axis=0)
        tl.debug_barrier()  # other threads of this program read them
    return num_candidates, total


@jit
def end_of_truncation(
    values_ptr: Pointer,
    num_values: Scalar,
    all_mass: Scalar,  # of all tokens, these or others
    top: Scalar,
    temperature: Scalar,
    top_k: Scalar,
    top_p: Scalar,
    BLOCK: constexpr,
) -> tuple[Scalar, Scalar]:
    """(key, quota): top-k and top-p keep every token above the order key and, by id, the first `quota` at it."""
    key = tl.full((), -0x7FFFFFFF, dtype=tl.int32)
    total = all_mass
    if top_k > 0:
        key = _largest_key(values_ptr, num_values, key, top, temperature, top_k, -1.0, BLOCK)
    above, mass_above, equals, each = _around_key(values_ptr, num_values, key, top, temperature, BLOCK)
    quota = equals
    if top_k > 0:
        quota = tl.minimum(equals, top_k - above)
        total = mass_above + each * quota
    if top_p < 1.0:
        # A token is kept while the mass before it is below this.
        limit = top_p.to(tl.float64) * total
        if mass_above >= limit:
            # The nucleus ends above: at the largest key from which on the mass reaches the limit.
            key = _largest_key(values_ptr, num_values, key, top, temperature, 1, limit * (1.0 - 1e-12), BLOCK)
            above, mass_above, equals, each = _around_key(
                values_ptr, num_values, key, top, temperature, BLOCK
            )
            quota = equals
        needed = tl.minimum(tl.ceil((limit - mass_above) / tl.maximum(each, 1e-300)), 1e9).to(tl.int32)
        # The most likely token stays, whatever top_p is.
        quota = tl.minimum(quota, tl.maximum(needed, tl.where(above == 0, 1, 0)))
    if quota == equals:  # nobody has to be counted
        key -= 1
        quota = quota * 0
    return key, quota
