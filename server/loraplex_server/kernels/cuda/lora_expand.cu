// LoRA's second product for rows that decode: B (A x) of all adapters of a batch and all modules of a projection, added to
// y or, unless ADD, written there, with zeros where a row's adapter leaves the module alone.
//
// A unit is COLUMNS columns of one module of one adapter, all of its ranks, for up to 8 rows. B lies rank by rank; read
// transposed, its columns are the rows of a fragment and A x is the other one. A warp adds up the parts of A x when it
// comes to other rows or another module, and keeps the sums.
//
// Compile-time, besides those of lora.cuh: ADD, COLUMNS (64 or 128), BATCH (parts of A x that are requested at once).
#include "lora.cuh"

#define STAGE_BYTES (RANKS * COLUMNS * 2)
#define ROW_CHUNKS (COLUMNS / 8)     // of 16 bytes
#define COPY_RANKS (32 / ROW_CHUNKS)
#define HELD_RANKS 64                // of A x, a multiple of RANKS
#define HELD_PITCH (HELD_RANKS + 8)  // the rows of a fragment lie in different banks

#define PAIRS 2  // of ranks that a lane adds up at once

typedef u16 HeldRows[ROWS][HELD_PITCH];

// held [row, rank] = sums of parts, in bf16; zeros behind the last rank of a fragment. To be called by a whole warp.
__device__ __forceinline__ void add_parts(HeldRows& held, const float* parts, int num_parts, int part_stride,
                                          int rank_stride, int rows, int ranks) {
    const int pairs = divide_up(ranks, RANKS) * (RANKS / 2);
    __syncwarp();
#pragma unroll 1
    for (int index = threadIdx.x & 31; index < rows * pairs; index += 32 * PAIRS) {
        float sums[PAIRS][2] = {};
#pragma unroll 1
        for (int first = 0; first < num_parts; first += BATCH) {
            float part[PAIRS][BATCH][2];
#pragma unroll
            for (int p = 0; p < PAIRS; ++p) {
                const int row = divide(index + p * 32, pairs), rank = (index + p * 32 - row * pairs) * 2;
                const float* from = parts + (long long)first * part_stride + (long long)row * rank_stride + rank;
#pragma unroll
                for (int i = 0; i < BATCH; ++i) {
                    const bool is_there = row < rows && first + i < num_parts;
                    part[p][i][0] = load_global_float(from, is_there && rank < ranks);
                    part[p][i][1] = load_global_float(from + 1, is_there && rank + 1 < ranks);
                    from += part_stride;
                }
            }
#pragma unroll
            for (int p = 0; p < PAIRS; ++p)
#pragma unroll
                for (int i = 0; i < BATCH; ++i) sums[p][0] += part[p][i][0], sums[p][1] += part[p][i][1];
        }
#pragma unroll
        for (int p = 0; p < PAIRS; ++p) {
            const int row = divide(index + p * 32, pairs), rank = (index + p * 32 - row * pairs) * 2;
            if (row < rows) *reinterpret_cast<u32*>(&held[row][rank]) = to_bf16_pair(sums[p][0], sums[p][1]);
        }
    }
    __syncwarp();
}

struct Unit {
    int at;             // its first stage among all
    int tile, sub;      // of all tiles, of its rows
    int module, block;  // of the projection, of its columns
    int width, ranks;   // of the module
};

extern "C" __global__ void __launch_bounds__(THREADS, MINB) lora_expand(
    u16* y, const float* all_parts, const u16* arena, const int* plan, int num_tiles, int y_stride, int end_0, int end_1, int end_2, int num_parts, int part_stride, int rank_stride) {
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ __align__(16) HeldRows all_held[WARPS];
    allow_next_kernel();

    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const u32 ring = shared_address(memory) + warp * (STAGES * STAGE_BYTES);
    HeldRows& held = all_held[warp];
    auto start_of = [&](int module) { return module == 0 ? 0 : module == 1 ? end_0 : end_1; };
    auto width_of = [&](int module) { return (module == 0 ? end_0 : module == 1 ? end_1 : end_2) - start_of(module); };
    auto stages_of = [&](int ranks) { return stages_of_ranks(ranks, ADD); };
    auto stages_of_module = [&](const Tile& tile, int module) {
        return divide_up(width_of(module), COLUMNS) * stages_of(tile.ranks[module]);
    };
    auto stages_of_sub = [&](const Tile& tile) {
        return stages_of_module(tile, 0) + stages_of_module(tile, 1) + stages_of_module(tile, 2);
    };
    const Work work = load_work(memory + WARPS * STAGES * STAGE_BYTES, plan, num_tiles, 1);
    // Warps of one block are far from one another: a share that is longer by one does not come to all of them.
    int begin, end;
    work.share(warp * gridDim.x + blockIdx.x, gridDim.x * WARPS, begin, end);

    auto begin_module = [&](Unit& unit) {
        unit.width = width_of(unit.module), unit.ranks = work.tiles[unit.tile].ranks[unit.module];
    };
    // Whether the next unit is of another module or tile, or belongs to another warp.
    auto advance = [&](Unit& unit) {
        unit.at += stages_of(unit.ranks);
        if (unit.at >= end) return true;
        if (++unit.block * COLUMNS < unit.width) return false;
        unit.block = 0;
        do {
            if (++unit.module == MAX_MODULES) {
                unit.module = 0;
                if (++unit.sub == work.tiles[unit.tile].num_subs()) unit.sub = 0, unit.tile = work.after(unit.tile);
            }
        } while (stages_of_module(work.tiles[unit.tile], unit.module) == 0);
        begin_module(unit);
        return true;
    };
    // A unit belongs to the warp that has its first stage.
    auto first_unit = [&] {
        Unit unit{};
        unit.at = end;
        if (begin == end) return unit;
        int rest;
        unit.tile = work.tile_of(begin, rest);
        const int of_sub = stages_of_sub(work.tiles[unit.tile]);
        unit.sub = divide(rest, of_sub), rest -= unit.sub * of_sub;
        for (unit.module = 0; rest >= stages_of_module(work.tiles[unit.tile], unit.module); ++unit.module)
            rest -= stages_of_module(work.tiles[unit.tile], unit.module);
        begin_module(unit);
        unit.block = divide(rest, stages_of(unit.ranks)), rest -= unit.block * stages_of(unit.ranks);
        unit.at = begin - rest;
        if (rest > 0) advance(unit);
        return unit;
    };
    const Unit first = first_unit();
    if (first.at >= end) {
        wait_for_previous_kernel();  // what follows this launch must not begin before what is ahead of it has ended
        return;
    }

    // What is copied next: of a unit the ranks from `rank` on.
    Unit copied = first;
    int rank = 0;
    const u16* b;  // this lane's, of the module's first ranks and columns
    const int line = lane / ROW_CHUNKS, chunk = lane % ROW_CHUNKS;
    auto begin_copying = [&] {
        b = arena + (long long)work.tiles[copied.tile].b[copied.module] * 8 + (long long)line * copied.width + chunk * 8;
    };
    begin_copying();
    auto copy_stage = [&](int slot) {
        if (copied.at < end) {
            const bool is_there = copied.block * COLUMNS + chunk * 8 < copied.width;
            const u16* from = b + (long long)rank * copied.width + copied.block * COLUMNS;
#pragma unroll
            for (int i = 0; i < RANKS / COPY_RANKS; ++i) {
                const int to = i * COPY_RANKS + line;
                copy_async_or_zero(ring + slot * STAGE_BYTES + to * (COLUMNS * 2) + ((chunk ^ (to & 7)) << 4), from,
                                   is_there && rank + to < copied.ranks);
                from += COPY_RANKS * copied.width;
            }
            rank += RANKS;
            if (rank >= copied.ranks) {
                rank = 0;
                if (advance(copied) && copied.at < end) begin_copying();
            }
        }
        commit_copies();
    };
    Unit unit = first;
    int done = 0, slot = 0;  // ranks multiplied
    bool is_new = true;      // other rows or another module than before
    const float* of_parts = nullptr;
    u32* y_row = nullptr;
    int rows = 0;
    auto begin_rows = [&] {
        const Tile& tile = work.tiles[unit.tile];
        const int row = tile.row + unit.sub * ROWS;
        rows = tile.rows_of(unit.sub);
        of_parts = all_parts + (long long)row * rank_stride + tile.rank_start(unit.module);
        y_row = reinterpret_cast<u32*>(y + (long long)(row + g) * y_stride + start_of(unit.module) + 2 * t);
    };
    float d[COLUMNS / 16][4];
    auto multiply_stage = [&] {
        // Ranks 2t, 2t + 1 and 8 further, of row g.
        const u16* const of_row = &held[g][done % HELD_RANKS + 2 * t];
        const bool is_there = g < rows && unit.ranks > 0;
        const u32 low = is_there ? *reinterpret_cast<const u32*>(of_row) : 0;
        const u32 high = is_there ? *reinterpret_cast<const u32*>(of_row + 8) : 0;
        const u32 from = ring + slot * STAGE_BYTES + ((lane >> 4) * 8 + (lane & 7)) * (COLUMNS * 2);
#pragma unroll
        for (int c = 0; c < COLUMNS / 16; ++c) {
            const uint4 w = load_matrices_transposed(from + (((c * 2 + (lane >> 3 & 1)) ^ (lane & 7)) << 4));
            mma_bf16(d[c], {w.x, w.y, w.z, w.w}, low, high);
        }
    };
    auto store_unit = [&](u32* to, int columns) {
#if ADD
        u32 before[COLUMNS / 8];
#pragma unroll
        for (int i = 0; i < COLUMNS / 8; ++i)
            if (i * 8 < columns) before[i] = to[i * 4];
#endif
#pragma unroll
        for (int i = 0; i < COLUMNS / 8; ++i) {
            // Columns × rows of a fragment, to rows × columns.
            const float low = d[i / 2][i % 2 * 2], high = d[i / 2][i % 2 * 2 + 1];
#if ADD
            const u32 low_bits = __float_as_uint(low), high_bits = __float_as_uint(high);
            const u32 tops = transpose_8x8(__byte_perm(low_bits, high_bits, 0x7632));
            const u32 rests = transpose_8x8(__byte_perm(low_bits, high_bits, 0x5410));
            const u32 sums = to_bf16_pair(
                from_bf16(static_cast<u16>(before[i])) + __uint_as_float(__byte_perm(rests, tops, 0x5410)),
                from_bf16(static_cast<u16>(before[i] >> 16)) + __uint_as_float(__byte_perm(rests, tops, 0x7632)));
#else
            const u32 sums = transpose_8x8(to_bf16_pair(low, high));
#endif
            if (i * 8 < columns) to[i * 4] = sums;
        }
    };

    // In one loop, for its code is fetched anew at every launch.
#pragma unroll 1
    for (int step = 0;; ++step) {
        if (step == STAGES) wait_for_previous_kernel();
        if (step >= STAGES) {
            if (done == 0) {
                if (is_new) begin_rows();
#pragma unroll
                for (int i = 0; i < COLUMNS / 4; ++i) d[i / 4][i % 4] = 0.0f;
            }
            if (done % HELD_RANKS == 0 && (is_new || unit.ranks > HELD_RANKS))
                add_parts(held, of_parts + done, num_parts, part_stride, rank_stride, rows,
                          min(HELD_RANKS, unit.ranks - done));
            is_new = false;
            wait_for_copies<STAGES - 1>();
            __syncwarp();
            multiply_stage();
            done += RANKS;
            __syncwarp();
        }
        copy_stage(slot);
        slot = slot + 1 == STAGES ? 0 : slot + 1;
        if (step >= STAGES && done >= unit.ranks) {
            store_unit(y_row + unit.block * (COLUMNS / 2), g < rows ? unit.width - unit.block * COLUMNS : 0);
            is_new = advance(unit);
            if (unit.at >= end) return;
            done = 0;
        }
    }
}
