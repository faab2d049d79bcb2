// LoRA's second product: B (A x) of all modules of a projection, added to y or, unless ADD, written there, with zeros where
// a row's adapter leaves the module alone.
//
// A unit is COLUMNS columns of one module of one adapter, all of its ranks, for up to 8 rows. B lies rank by rank; read
// transposed, its columns are the rows of a fragment and A x is the other one. A warp adds up the parts of A x when it
// comes to other rows or another module, and keeps the sums.
//
// Compile-time, besides those of lora.cuh: B_STAGES (copies under way of one warp).
#pragma once
#include "lora.cuh"

#define ROW_CHUNKS (COLUMNS / 8)     // of 16 bytes
#define B_BYTES (RANKS * COLUMNS * 2)  // of a stage
#define COPY_RANKS (32 / ROW_CHUNKS)
#define HELD_RANKS 64                // of A x, a multiple of RANKS
#define HELD_PITCH (HELD_RANKS + 8)  // the rows of a fragment lie in different banks

typedef u16 HeldRows[ROWS][HELD_PITCH];

// Past the first-level cache, which other blocks' stores do not reach; or zero.
__device__ __forceinline__ float load_part(const float* from, bool is_there) {
    float v = 0.0f;
    if (is_there) asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(from) : "memory");
    return v;
}

// Four 8×8 blocks of 16 bits, transposed; lane 8q + r gives the address of row r of block q.
__device__ __forceinline__ uint4 load_transposed(u32 address) {
    uint4 v;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}

// held [row, rank] = sums of parts, in bf16; zeros behind the last rank of a fragment. A lane asks for PAIRS pairs of ranks
// at once, of BATCH parts each.
template <int PAIRS, int BATCH>
__device__ __forceinline__ void add_parts_of_rows(HeldRows& held, const float* parts, int num_parts,
                                                  int part_stride, int rank_stride, int rows, int ranks) {
    const int pairs = divide_up(ranks, RANKS) * (RANKS / 2);
    for (int index = threadIdx.x & 31; index < rows * pairs; index += 32 * PAIRS) {
        float sums[PAIRS][2] = {};
        for (int first = 0; first < num_parts; first += BATCH) {
            float part[PAIRS][BATCH][2];
#pragma unroll
            for (int p = 0; p < PAIRS; ++p) {
                const int row = divide(index + p * 32, pairs), rank = (index + p * 32 - row * pairs) * 2;
                const float* from = parts + (long long)first * part_stride + (long long)row * rank_stride + rank;
#pragma unroll
                for (int i = 0; i < BATCH; ++i) {
                    const bool is_there = row < rows && first + i < num_parts;
                    part[p][i][0] = load_part(from, is_there && rank < ranks);
                    part[p][i][1] = load_part(from + 1, is_there && rank + 1 < ranks);
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
}

struct ExpandUnit {
    int at;             // its first stage among all
    int tile, sub;      // of all tiles, of its rows
    int module, block;  // of the projection, of its columns
    int width, ranks;   // of the module
};

// Work is counted in stages; without ranks there are zeros to be written.
__device__ __forceinline__ int stages_of(int ranks) { return ADD ? divide_up(ranks, RANKS) : max(1, divide_up(ranks, RANKS)); }

__device__ __forceinline__ int stages_of_module(const Operands& of, const Tile& tile, int module) {
    return divide_up(of.width_of(module), COLUMNS) * stages_of(tile.ranks[module]);
}

__device__ __forceinline__ int stages_of_sub(const Operands& of, const Tile& tile) {
    return stages_of_module(of, tile, 0) + stages_of_module(of, tile, 1) + stages_of_module(of, tile, 2);
}

__device__ __forceinline__ int expand_stages(const Operands& of, const Tile& tile) {
    return tile.num_subs() * stages_of_sub(of, tile);
}

// `ring`: B_STAGES · B_BYTES of shared memory of this warp. Calls `wait_for_parts` when the first weights are under way.
template <class Wait>
__device__ __forceinline__ void expand(const Operands& of, const Work& work, u32 ring, HeldRows& held,
                                       const Wait& wait_for_parts) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    // Warps of one block are far from one another: a share that is longer by one does not come to all of them.
    int begin, end;
    work.share(warp * gridDim.x + blockIdx.x, gridDim.x * WARPS, begin, end);

    auto begin_module = [&](ExpandUnit& unit) { unit.width = of.width_of(unit.module), unit.ranks = work.tiles[unit.tile].ranks[unit.module]; };
    // Whether the next unit is of another module or tile, or belongs to another warp.
    auto advance = [&](ExpandUnit& unit) {
        unit.at += stages_of(unit.ranks);
        if (unit.at >= end) return true;
        if (++unit.block * COLUMNS < unit.width) return false;
        unit.block = 0;
        do {
            if (++unit.module == MAX_MODULES) {
                unit.module = 0;
                if (++unit.sub == work.tiles[unit.tile].num_subs()) unit.sub = 0, unit.tile = work.after(unit.tile);
            }
        } while (stages_of_module(of, work.tiles[unit.tile], unit.module) == 0);
        begin_module(unit);
        return true;
    };
    // A unit belongs to the warp that has its first stage.
    auto first_unit = [&] {
        ExpandUnit unit{};
        unit.at = end;
        if (begin == end) return unit;
        int rest;
        unit.tile = work.tile_of(begin, rest);
        const int of_sub = stages_of_sub(of, work.tiles[unit.tile]);
        unit.sub = divide(rest, of_sub), rest -= unit.sub * of_sub;
        for (unit.module = 0; rest >= stages_of_module(of, work.tiles[unit.tile], unit.module); ++unit.module)
            rest -= stages_of_module(of, work.tiles[unit.tile], unit.module);
        begin_module(unit);
        unit.block = divide(rest, stages_of(unit.ranks)), rest -= unit.block * stages_of(unit.ranks);
        unit.at = begin - rest;
        if (rest > 0) advance(unit);
        return unit;
    };
    const ExpandUnit first = first_unit();
    if (first.at >= end) return;

    // What is copied next: of a unit the ranks from `rank` on.
    ExpandUnit copied = first;
    int rank = 0;
    const u16* b;  // this lane's, of the module's first ranks and columns
    const int line = lane / ROW_CHUNKS, chunk = lane % ROW_CHUNKS;
    auto begin_copying = [&] {
        b = of.arena + (long long)work.tiles[copied.tile].b[copied.module] * 8 + (long long)line * copied.width + chunk * 8;
    };
    begin_copying();
    auto copy_stage = [&](int slot) {
        if (copied.at < end) {
            const bool is_there = copied.block * COLUMNS + chunk * 8 < copied.width;
            const u16* from = b + (long long)rank * copied.width + copied.block * COLUMNS;
#pragma unroll
            for (int i = 0; i < RANKS / COPY_RANKS; ++i) {
                const int to = i * COPY_RANKS + line;
                copy_async_or_zero(ring + slot * B_BYTES + to * (COLUMNS * 2) + ((chunk ^ (to & 7)) << 4), from,
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
    for (int slot = 0; slot < B_STAGES; ++slot) copy_stage(slot);
    wait_for_parts();

    int slot = 0;
    bool is_new = true;  // other rows or another module than before
    const float* of_parts = nullptr;
    u32* y_row = nullptr;
    int rows = 0;
    auto hold = [&](int begin, int ranks) {
        const float* const from = of_parts + begin;
        const int here = min(HELD_RANKS, ranks - begin);
        __syncwarp();
        if (rows * here <= 64)
            add_parts_of_rows<1, 8>(held, from, of.num_parts(), of.part_stride, of.rank_stride, rows, here);
        else
            add_parts_of_rows<2, 4>(held, from, of.num_parts(), of.part_stride, of.rank_stride, rows, here);
        __syncwarp();
    };
    for (ExpandUnit unit = first; unit.at < end; is_new = advance(unit)) {
        if (is_new) {
            const Tile& tile = work.tiles[unit.tile];
            const int row = tile.row + unit.sub * ROWS;
            rows = tile.rows_of(unit.sub);
            of_parts = of.parts + (long long)row * of.rank_stride + tile.rank_start(unit.module);
            y_row = reinterpret_cast<u32*>(of.y + (long long)(row + g) * of.y_stride + of.start_of(unit.module) + 2 * t);
            hold(0, unit.ranks);
        }
        u32* const y_unit = y_row + unit.block * (COLUMNS / 2);
        const int columns = g < rows ? unit.width - unit.block * COLUMNS : 0;
        float d[COLUMNS / 16][4] = {};
#if ADD
        u32 before[COLUMNS / 8];
#pragma unroll
        for (int i = 0; i < COLUMNS / 8; ++i)
            if (i * 8 < columns) before[i] = y_unit[i * 4];
#endif
        int done = 0;
        do {
            const int held_rank = done % HELD_RANKS;
            if (held_rank == 0 && unit.ranks > HELD_RANKS) hold(done, unit.ranks);
            // Ranks 2t, 2t + 1 and 8 further, of row g.
            const u16* const of_row = &held[g][held_rank + 2 * t];
            const bool is_there = g < rows && unit.ranks > 0;
            const u32 a_x_low = is_there ? *reinterpret_cast<const u32*>(of_row) : 0;
            const u32 a_x_high = is_there ? *reinterpret_cast<const u32*>(of_row + 8) : 0;
            wait_for_copies<B_STAGES - 1>();
            __syncwarp();
            const int rank_line = (lane >> 4) * 8 + (lane & 7), low_or_high = lane >> 3 & 1;
#pragma unroll
            for (int c = 0; c < COLUMNS / 16; ++c) {
                const uint4 w = load_transposed(ring + slot * B_BYTES + rank_line * (COLUMNS * 2) +
                                                (((c * 2 + low_or_high) ^ (lane & 7)) << 4));
                mma_bf16(d[c], {w.x, w.y, w.z, w.w}, a_x_low, a_x_high);
            }
            __syncwarp();
            copy_stage(slot);
            slot = slot + 1 == B_STAGES ? 0 : slot + 1;
            done += RANKS;
        } while (done < unit.ranks);
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
            if (i * 8 < columns) y_unit[i * 4] = sums;
        }
    }
}
