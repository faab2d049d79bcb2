// LoRA's first product: A x as sums over parts of the inputs. The second product adds them, in order: a row's result depends
// on the row and its adapter alone.
//
// A unit is a part of the inputs of 16 ranks of one adapter, for up to 8 rows; the warps of a block share its inputs out. A
// lane copies the very bytes of A and x that it multiplies, and so waits for its own copies only: the inputs of a fragment
// are taken in the order in which 16-byte pieces of a row lie, the same for both.
//
// Compile-time, besides those of lora.cuh: A_CHUNKS (of 32 inputs, of one stage), A_STAGES (copies under way of one warp).
#pragma once
#include "lora.cuh"

#define A_INPUTS (A_CHUNKS * 32)
#define A_BYTES (A_CHUNKS * 3 * 512)  // of a stage: 16 ranks of A, then 8 rows of x
#define WARP_INPUTS (PART / WARPS)

static_assert(THREADS == RANKS * ROWS, "a thread for each sum of a unit");
static_assert(WARP_INPUTS % A_INPUTS == 0, "whole stages");

typedef float ShrinkSums[2][WARPS][ROWS][RANKS + 1];

struct ShrinkUnit {
    int left;              // units of this block behind it
    int tile, sub, group;  // of all tiles, of its rows, of its ranks
    int part;              // of the inputs
};

__device__ __forceinline__ int shrink_units(const Operands& of, const Tile& tile) {
    return tile.num_subs() * tile.num_groups() * of.num_parts();
}

// `ring`: A_STAGES · A_BYTES of shared memory of this warp. Waits for the previous kernel.
__device__ __forceinline__ void shrink(const Operands& of, const Work& work, u32 ring, ShrinkSums& all_sums) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int num_parts = of.num_parts();
    ring += lane * 16;
    int first_unit, units_end;
    work.share(blockIdx.x, gridDim.x, first_unit, units_end);
    if (first_unit == units_end) {
        wait_for_previous_kernel();
        return;
    }

    ShrinkUnit first;
    int rest;
    first.tile = work.tile_of(first_unit, rest);
    const int groups_before = divide(rest, num_parts), groups = work.tiles[first.tile].num_groups();
    first.part = rest - groups_before * num_parts;
    first.sub = divide(groups_before, groups), first.group = groups_before - first.sub * groups;
    first.left = units_end - first_unit - 1;
    auto advance = [&](ShrinkUnit& unit) {
        --unit.left;
        if (++unit.part < num_parts) return;
        unit.part = 0;
        if (++unit.group < work.tiles[unit.tile].num_groups()) return;
        unit.group = 0;
        if (++unit.sub == work.tiles[unit.tile].num_subs()) unit.sub = 0, unit.tile = work.after(unit.tile);
    };
    // This warp's share of a unit.
    auto input_begin = [&](const ShrinkUnit& unit) { return unit.part * PART + warp * WARP_INPUTS; };
    auto input_end = [&](const ShrinkUnit& unit) { return min(of.in_features, input_begin(unit) + WARP_INPUTS); };

    // What is copied next: of a unit, the inputs from `input` on.
    ShrinkUnit copied;
    int input, end, ranks, rows;
    const u16 *a, *x_row;
    auto begin_copying = [&] {
        const Tile& tile = work.tiles[copied.tile];
        input = input_begin(copied), end = input_end(copied);
        ranks = tile.total_rank - copied.group * RANKS, rows = tile.num_rows - copied.sub * ROWS;
        a = of.arena + (long long)tile.a * 8 + (long long)(copied.group * RANKS + g) * of.in_features + input + t * 8;
        x_row = of.x + (long long)(tile.row + copied.sub * ROWS + g) * of.x_stride + input + t * 8;
    };
    auto copy_stage = [&](int slot, bool has_a, bool has_x) {
        while (input >= end && copied.left > 0) {
            advance(copied);
            begin_copying();
        }
        if (input < end) {
            const u16* const high = a + 8ll * of.in_features;
#pragma unroll
            for (int c = 0; c < A_CHUNKS; ++c) {
                const bool is_there = input + c * 32 + t * 8 < of.in_features;
                const u32 to = ring + slot * A_BYTES + c * 512;
                if (has_a) {
                    copy_async_or_zero(to, a + c * 32, is_there && g < ranks);
                    copy_async_or_zero(to + A_CHUNKS * 512, high + c * 32, is_there && 8 + g < ranks);
                }
                if (has_x) copy_async_or_zero(to + A_CHUNKS * 1024, x_row + c * 32, is_there && g < rows);
            }
            a += A_INPUTS, x_row += A_INPUTS, input += A_INPUTS;
        }
        commit_copies();
    };
    auto start_copying = [&](bool has_a, bool has_x) {
        copied = first;
        begin_copying();
        for (int slot = 0; slot < A_STAGES; ++slot) copy_stage(slot, has_a, has_x);
    };
    start_copying(true, false);
    wait_for_previous_kernel();
    start_copying(false, true);

    int slot = 0;
    for (ShrinkUnit unit = first;; advance(unit)) {
        float d[2][4] = {};
        for (int begin = input_begin(unit); begin < input_end(unit); begin += A_INPUTS) {
            wait_for_copies<A_STAGES - 1>();
#pragma unroll
            for (int c = 0; c < A_CHUNKS; ++c) {
                const u32 from = ring + slot * A_BYTES + c * 512;
                const uint4 low = load_shared16(from), high = load_shared16(from + A_CHUNKS * 512);
                const uint4 b = load_shared16(from + A_CHUNKS * 1024);
                mma_bf16(d[0], {low.x, high.x, low.y, high.y}, b.x, b.y);
                mma_bf16(d[1], {low.z, high.z, low.w, high.w}, b.z, b.w);
            }
            copy_stage(slot, true, true);  // a lane's own bytes: nobody else needs to have read
            slot = slot + 1 == A_STAGES ? 0 : slot + 1;
        }
        float(&sums)[WARPS][ROWS][RANKS + 1] = all_sums[unit.left & 1];
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[warp][2 * t + (i & 1)][g + (i >> 1) * 8] = d[0][i] + d[1][i];
        __syncthreads();
        const Tile& tile = work.tiles[unit.tile];
        const int row = threadIdx.x / RANKS, rank = threadIdx.x % RANKS;
        if (row < tile.rows_of(unit.sub) && rank < tile.total_rank - unit.group * RANKS) {
            float sum = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; ++w) sum += sums[w][row][rank];
            of.parts[unit.part * (long long)of.part_stride +
                     (long long)(tile.row + unit.sub * ROWS + row) * of.rank_stride + unit.group * RANKS + rank] = sum;
        }
        if (unit.left == 0) return;
    }
}
