"""The three kernels of `loraplex_server.kernels.sampling`, in the order in which they are launched."""

from __future__ import annotations

from loraplex_server.kernels.device_code import wait_for_previous
from loraplex_server.kernels.sampling_code import (
    bounds,
    last_kept,
    load_masses,
    order_key,
    pick_probes,
    race,
    race_key,
    sums_from,
)
from loraplex_server.kernels.triton_runtime import Pointer, Scalar, constexpr, jit, tl


@jit
def survey_kernel(
    logits_ptr: Pointer,
    tops_ptr: Pointer,
    top_ids_ptr: Pointer,
    temperature_ptr: Pointer,
    top_k_ptr: Pointer,
    top_p_ptr: Pointer,
    probe_keys_ptr: Pointer,
    probe_counts_ptr: Pointer,
    probe_masses_ptr: Pointer,
    row_stride: Scalar,
    IS_GREEDY: constexpr,
    VOCAB: constexpr,
    TILES: constexpr,
    TILE: constexpr,
    SAMPLE: constexpr,
    PROBES: constexpr,
    BLOCK: constexpr,
    PDL: constexpr,
) -> None:
    """Program (tile, row): its largest logit, the lowest id that has it, and what lies from each probe on.

    The largest of a tile with a NaN is that. Masses are relative to the tile's largest logit.
    """
    tile = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    ids = tile * TILE + tl.arange(0, TILE)
    wait_for_previous(PDL)
    x = tl.load(row_ptr + ids, mask=ids < VOCAB, other=-float("inf"))
    top = tl.max(x, axis=0)
    is_number = tl.max((x != x).to(tl.int32), axis=0) == 0
    tl.store(tops_ptr + row * TILES + tile, tl.where(is_number, top, float("nan")))
    tl.store(top_ids_ptr + row * TILES + tile, tl.min(tl.where(x == top, ids, VOCAB), axis=0))
    if not IS_GREEDY:
        temperature = tl.load(temperature_ptr + row)
        truncates = (tl.load(top_k_ptr + row) > 0) | (tl.load(top_p_ptr + row) < 1.0)
        if (temperature > 0) & truncates:
            keys = pick_probes(row_ptr, VOCAB, SAMPLE, PROBES)
            counts, masses = sums_from(
                row_ptr,
                tile * TILE,
                tl.minimum(tile * TILE + TILE, VOCAB),
                keys,
                0x7FFFFFFF,
                tl.where(top == -float("inf"), 0.0, top),
                tl.maximum(temperature, 1e-6),
                BLOCK,
                PROBES,
            )
            probes = tl.arange(0, PROBES)
            place = (row * TILES + tile) * PROBES + probes
            tl.store(probe_keys_ptr + row * PROBES + probes, keys, mask=tile + probes * 0 == 0)
            tl.store(probe_counts_ptr + place, counts)
            tl.store(probe_masses_ptr + place, masses)


@jit
def race_kernel(
    logits_ptr: Pointer,
    tops_ptr: Pointer,
    temperature_ptr: Pointer,
    top_k_ptr: Pointer,
    top_p_ptr: Pointer,
    min_p_ptr: Pointer,
    seed_ptr: Pointer,
    index_ptr: Pointer,
    probe_keys_ptr: Pointer,
    probe_counts_ptr: Pointer,
    probe_masses_ptr: Pointer,
    speeds_ptr: Pointer,
    winners_ptr: Pointer,
    open_values_ptr: Pointer,
    open_ids_ptr: Pointer,
    bounds_ptr: Pointer,
    bound_masses_ptr: Pointer,
    row_stride: Scalar,
    VOCAB: constexpr,
    TILES: constexpr,
    TILES_BLOCK: constexpr,
    TILE: constexpr,
    PROBES: constexpr,
    CAPACITY: constexpr,
    PDL: constexpr,
) -> None:
    """Program (tile, row): the race of those tokens that are certainly kept, and a list of those that may be.

    The first program of a row writes down where the latter lie.
    """
    tile = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    wait_for_previous(PDL)
    temperature = tl.load(temperature_ptr + row)
    if temperature > 0:
        temperature = tl.maximum(temperature, 1e-6)
        top_k = tl.minimum(tl.load(top_k_ptr + row), VOCAB)
        top_p = tl.load(top_p_ptr + row)
        tiles = tl.arange(0, TILES_BLOCK)
        tops = tl.load(tops_ptr + row * TILES + tiles, mask=tiles < TILES, other=-float("inf"))
        top = tl.max(tops, axis=0)
        row_ptr = logits_ptr + row * row_stride
        end = tl.minimum(tile * TILE + TILE, VOCAB)
        ids, keys, mass = load_masses(row_ptr, end, tile * TILE, top, temperature, TILE)
        kept_from = tl.full((), -0x7FFFFFFF, dtype=tl.int32)
        if (top_k > 0) | (top_p < 1.0):
            probes = tl.arange(0, PROBES)
            probe_keys = tl.load(probe_keys_ptr + row * PROBES + probes)
            places = (row * TILES + tiles)[:, None] * PROBES + probes[None, :]
            mask = (tiles < TILES)[:, None] & (probes >= 0)[None, :]
            counts = tl.load(probe_counts_ptr + places, mask=mask, other=0)
            masses = tl.load(probe_masses_ptr + places, mask=mask, other=0.0)
            masses *= tl.exp((tops - top) / temperature)[:, None]
            masses_from = tl.sum(masses.to(tl.float64), axis=0)
            is_kept, is_enough = bounds(tl.sum(counts, axis=0), masses_from, top_k, top_p)
            kept_from = tl.min(tl.where(is_kept, probe_keys, order_key(top) + 1), axis=0)
            open_from = tl.max(tl.where(is_enough, probe_keys, -0x7FFFFFFF), axis=0)
            num_kept = tl.max(tl.where(is_kept[None, :], counts, 0), axis=1)  # [tiles]
            num_open = tl.min(tl.where(is_enough[None, :], counts, VOCAB), axis=1) - num_kept
            all_open = tl.sum(num_open, axis=0)
            if tile == 0:
                tl.store(bounds_ptr + row * 4, open_from)
                tl.store(bounds_ptr + row * 4 + 1, kept_from)
                tl.store(bounds_ptr + row * 4 + 2, tl.sum(num_kept, axis=0))
                tl.store(bounds_ptr + row * 4 + 3, all_open)
                tl.store(bound_masses_ptr + row * 2, tl.max(tl.where(is_kept, masses_from, 0.0), axis=0))
                tl.store(bound_masses_ptr + row * 2 + 1, tl.max(masses_from, axis=0))
            if (all_open > 0) & (all_open <= CAPACITY):
                is_open = (keys >= open_from) & (keys < kept_from)
                before = tl.sum(tl.where(tiles < tile, num_open, 0), axis=0)
                open_places = row * CAPACITY + before + tl.cumsum(is_open.to(tl.int32), axis=0) - 1
                tl.store(open_values_ptr + open_places, tl.load(row_ptr + ids, mask=is_open), mask=is_open)
                tl.store(open_ids_ptr + open_places, ids, mask=is_open)
        is_racing = (keys >= kept_from) & (mass >= tl.load(min_p_ptr + row))
        seed = race_key(tl.load(seed_ptr + row), tl.load(index_ptr + row))
        speed, winner = race(mass, is_racing, ids, seed)
        tl.store(speeds_ptr + row * TILES + tile, speed)
        tl.store(winners_ptr + row * TILES + tile, winner)


@jit
def choose_kernel(
    logits_ptr: Pointer,
    tops_ptr: Pointer,
    top_ids_ptr: Pointer,
    temperature_ptr: Pointer,
    top_k_ptr: Pointer,
    top_p_ptr: Pointer,
    min_p_ptr: Pointer,
    seed_ptr: Pointer,
    index_ptr: Pointer,
    speeds_ptr: Pointer,
    winners_ptr: Pointer,
    open_values_ptr: Pointer,
    open_ids_ptr: Pointer,
    bounds_ptr: Pointer,
    bound_masses_ptr: Pointer,
    out_ptr: Pointer,
    row_stride: Scalar,
    IS_GREEDY: constexpr,
    VOCAB: constexpr,
    TILES: constexpr,
    TILES_BLOCK: constexpr,
    CAPACITY: constexpr,
    BLOCK: constexpr,
    PDL: constexpr,
) -> None:
    """Program (row): the best of its tiles, and of what of the undecided tokens turns out to be kept; -1 with a NaN."""
    row = tl.program_id(0).to(tl.int64)
    tiles = tl.arange(0, TILES_BLOCK)
    mask = tiles < TILES
    wait_for_previous(PDL)
    tops = tl.load(tops_ptr + row * TILES + tiles, mask=mask, other=-float("inf"))
    top_ids = tl.load(top_ids_ptr + row * TILES + tiles, mask=mask, other=VOCAB)
    top = tl.max(tops, axis=0)
    chosen = tl.min(tl.where(tops == top, top_ids, VOCAB), axis=0)
    if not IS_GREEDY:
        temperature = tl.load(temperature_ptr + row)
        if temperature > 0:
            temperature = tl.maximum(temperature, 1e-6)
            top_k = tl.minimum(tl.load(top_k_ptr + row), VOCAB)
            top_p = tl.load(top_p_ptr + row)
            min_p = tl.load(min_p_ptr + row)
            speeds = tl.load(speeds_ptr + row * TILES + tiles, mask=mask, other=-1.0)
            winners = tl.load(winners_ptr + row * TILES + tiles, mask=mask, other=VOCAB)
            fastest = tl.max(speeds, axis=0)
            chosen = tl.min(tl.where(speeds == fastest, winners, VOCAB), axis=0)
            num_open = tl.zeros((), dtype=tl.int32)
            if (top_k > 0) | (top_p < 1.0):
                num_open = tl.load(bounds_ptr + row * 4 + 3)
            if num_open > 0:
                kept_from = tl.load(bounds_ptr + row * 4 + 1)
                is_listed = num_open <= CAPACITY
                values_ptr = tl.where(
                    is_listed, open_values_ptr + row * CAPACITY, logits_ptr + row * row_stride
                )
                num_values = tl.where(is_listed, num_open, VOCAB)
                key, quota = last_kept(
                    values_ptr,
                    num_values,
                    tl.load(bounds_ptr + row * 4),
                    kept_from,
                    tl.load(bounds_ptr + row * 4 + 2),
                    tl.load(bound_masses_ptr + row * 2),
                    tl.load(bound_masses_ptr + row * 2 + 1),
                    top,
                    temperature,
                    top_k,
                    top_p,
                    BLOCK,
                )
                seed = race_key(tl.load(seed_ptr + row), tl.load(index_ptr + row))
                num_equal = tl.zeros((), dtype=tl.int32)
                for first in range(0, num_values, BLOCK):
                    places, keys, mass = load_masses(values_ptr, num_values, first, top, temperature, BLOCK)
                    is_value = (places < num_values) & is_listed
                    ids = tl.load(open_ids_ptr + row * CAPACITY + places, mask=is_value, other=0)
                    ids = tl.where(is_listed, ids, places)
                    is_equal = (keys == key).to(tl.int32)
                    is_first = (is_equal == 1) & (num_equal + tl.cumsum(is_equal, axis=0) <= quota)
                    is_kept = (((keys > key) & (keys < kept_from)) | is_first) & (mass >= min_p)
                    speed, winner = race(mass, is_kept, ids, seed)
                    is_better = (speed > fastest) | ((speed == fastest) & (winner < chosen))
                    chosen = tl.where(is_better, winner, chosen)
                    fastest = tl.maximum(fastest, speed)
                    num_equal += tl.sum(is_equal, axis=0)
    is_number = (tl.max((tops != tops).to(tl.int32), axis=0) == 0) & (chosen < VOCAB)
    tl.store(out_ptr + row, tl.where(is_number, chosen, -1).to(tl.int64))
