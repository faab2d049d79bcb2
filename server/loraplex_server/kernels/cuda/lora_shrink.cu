// LoRA's first product for small row tiles: A x, for all adapters of a batch in one launch, as sums over parts of the
// inputs: parts [part, row, rank]. The second product adds them, in order: a row's result depends on the row and its adapter
// alone.
//
// A block for each multiprocessor stays for the whole launch, and has an equal, contiguous share of the batch. Each of its
// warps keeps STAGES copies of weights under way in its piece of shared memory, from the first weight to the last, so that
// the bus does not pause for it. That takes few registers and not much shared memory: a block finds room beside a base
// product, which leaves a good part of the bus idle.
//
// A unit is a part of the inputs of 16 ranks of one adapter, for up to 8 rows; the warps of a block share its inputs out. A
// lane copies the very bytes of A and x that it multiplies, and so waits for its own copies only: the inputs of a fragment
// are taken in the order in which 16-byte pieces of a row lie, the same for both.
//
// Compile-time: WARPS, ROWS and PART (rows and inputs of a unit), CHUNKS (of 32 inputs, of one stage), STAGES, MINB (blocks
// that a multiprocessor has room for at least).
#include "lora.cuh"

#define STAGE_INPUTS (CHUNKS * 32)
#define STAGE_BYTES (CHUNKS * 3 * 512)  // 16 ranks of A, then 8 rows of x
#define WARP_INPUTS (PART / WARPS)

static_assert(THREADS == RANKS * ROWS, "a thread for each sum of a unit");
static_assert(WARP_INPUTS % STAGE_INPUTS == 0, "whole stages");
static_assert(ROWS == 8, "of a fragment");

// The row tiles of a launch.
struct Work {
    const Tile* tiles;
    int num_tiles, total;  // units

    int __device__ num_subs(int tile) const { return divide_up(tiles[tile].num_rows, ROWS); }
    int __device__ rows_of(int tile, int sub) const { return min(ROWS, tiles[tile].num_rows - sub * ROWS); }
    int __device__ num_groups(int tile) const { return divide_up(tiles[tile].total_rank, RANKS); }

    // Where a unit lies; to be called by a whole warp. `rest`: its place within the tile.
    __device__ int tile_of(int unit, int& rest) const {
        const int lane = threadIdx.x & 31;
        int tile = 0;
        for (int first = 0; first < num_tiles; first += 32) {
            const bool is_before = first + lane < num_tiles && tiles[first + lane].end <= unit;
            const int count = __popc(__ballot_sync(0xffffffffu, is_before));
            tile += count;
            if (count < 32) break;
        }
        rest = unit - (tile == 0 ? 0 : tiles[tile - 1].end);
        return tile;
    }

    // The next tile with units, or num_tiles.
    __device__ int after(int tile) const {
        const int end = tiles[tile].end;
        do ++tile;
        while (tile < num_tiles && tiles[tile].end == end);
        return tile;
    }

    // What belongs to a block.
    __device__ void share(int& begin, int& end) const {
        begin = static_cast<int>(static_cast<long long>(total) * blockIdx.x / gridDim.x);
        end = static_cast<int>(static_cast<long long>(total) * (blockIdx.x + 1) / gridDim.x);
    }
};

// Reads the tiles into `memory`, shared. To be called by the whole block.
__device__ __forceinline__ Work load_work(unsigned char* memory, const int4* from, int num_tiles) {
    int4* const to = reinterpret_cast<int4*>(memory);
#pragma unroll 1
    for (int i = threadIdx.x; i < num_tiles * 3; i += THREADS) to[i] = from[i];
    __syncthreads();
    const Tile* const tiles = reinterpret_cast<const Tile*>(memory);
    return {tiles, num_tiles, tiles[num_tiles - 1].end};
}

struct Unit {
    int left;              // units of this block behind it
    int tile, sub, group;  // of all tiles, of its rows, of its ranks
    int part;              // of the inputs
};

extern "C" __global__ void __launch_bounds__(THREADS, MINB) lora_shrink(
    const u16* x, float* parts, const u16* arena, const int4* all_tiles, int num_tiles, int x_stride, int part_stride,
    int in_features, int rank_stride) {
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ float all_sums[2][WARPS][ROWS][RANKS + 1];
    allow_next_kernel();

    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const u32 ring = shared_address(memory) + warp * (STAGES * STAGE_BYTES) + lane * 16;
    const int num_parts = divide_up(in_features, PART);
    const Work work = load_work(memory + WARPS * STAGES * STAGE_BYTES, all_tiles, num_tiles);
    int first_unit, units_end;
    work.share(first_unit, units_end);
    if (first_unit == units_end) {
        wait_for_previous_kernel();  // what follows this launch must not begin before what is ahead of it has ended
        return;
    }

    Unit first;
    int rest;
    first.tile = work.tile_of(first_unit, rest);
    const int groups_before = divide(rest, num_parts), groups = work.num_groups(first.tile);
    first.part = rest - groups_before * num_parts;
    first.sub = divide(groups_before, groups), first.group = groups_before - first.sub * groups;
    first.left = units_end - first_unit - 1;
    auto advance = [&](Unit& unit) {
        --unit.left;
        if (++unit.part < num_parts) return;
        unit.part = 0;
        if (++unit.group < work.num_groups(unit.tile)) return;
        unit.group = 0;
        if (++unit.sub == work.num_subs(unit.tile)) unit.sub = 0, unit.tile = work.after(unit.tile);
    };
    // This warp's share of a unit.
    auto input_begin = [&](const Unit& unit) { return unit.part * PART + warp * WARP_INPUTS; };
    auto input_end = [&](const Unit& unit) { return min(in_features, input_begin(unit) + WARP_INPUTS); };

    // What is copied next: of a unit, the inputs from `input` on.
    Unit copied;
    int input, end, ranks, rows;
    const u16 *a, *x_row;
    auto begin_copying = [&] {
        const Tile& tile = work.tiles[copied.tile];
        input = input_begin(copied), end = input_end(copied);
        ranks = tile.total_rank - copied.group * RANKS, rows = work.rows_of(copied.tile, copied.sub);
        a = arena + (long long)tile.a * 8 + (long long)(copied.group * RANKS + g) * in_features + input + t * 8;
        x_row = x + (long long)(tile.row + copied.sub * ROWS + g) * x_stride + input + t * 8;
    };
    auto copy_stage = [&](int slot, bool has_a, bool has_x) {
        while (input >= end && copied.left > 0) {
            advance(copied);
            begin_copying();
        }
        if (input < end) {
            const u16* const high = a + 8ll * in_features;
#pragma unroll
            for (int c = 0; c < CHUNKS; ++c) {
                const bool is_there = input + c * 32 + t * 8 < in_features;
                const u32 to = ring + slot * STAGE_BYTES + c * 512;
                if (has_a) {
                    copy_async_or_zero(to, a + c * 32, is_there && g < ranks);
                    copy_async_or_zero(to + CHUNKS * 512, high + c * 32, is_there && 8 + g < ranks);
                }
                if (has_x) copy_async_or_zero(to + CHUNKS * 1024, x_row + c * 32, is_there && g < rows);
            }
            a += STAGE_INPUTS, x_row += STAGE_INPUTS, input += STAGE_INPUTS;
        }
        commit_copies();
    };
    auto multiply_stage = [&](int slot, float (&d)[2][4]) {
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
            const u32 from = ring + slot * STAGE_BYTES + c * 512;
            const uint4 low = load_shared16(from), high = load_shared16(from + CHUNKS * 512);
            const uint4 b = load_shared16(from + CHUNKS * 1024);
            mma_bf16(d[0], {low.x, high.x, low.y, high.y}, b.x, b.y);
            mma_bf16(d[1], {low.z, high.z, low.w, high.w}, b.z, b.w);
        }
    };
    auto store_unit = [&](const Unit& unit, const float (&d)[2][4]) {
        float(&sums)[WARPS][ROWS][RANKS + 1] = all_sums[unit.left & 1];
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[warp][2 * t + (i & 1)][g + (i >> 1) * 8] = d[0][i] + d[1][i];
        __syncthreads();
        const Tile& tile = work.tiles[unit.tile];
        const int row = threadIdx.x / RANKS, rank = threadIdx.x % RANKS;
        if (row >= work.rows_of(unit.tile, unit.sub) || rank >= tile.total_rank - unit.group * RANKS) return;
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) sum += sums[w][row][rank];
        parts[unit.part * (long long)part_stride + (long long)(tile.row + unit.sub * ROWS + row) * rank_stride +
                 unit.group * RANKS + rank] = sum;
    };

    // In one loop, for its code is fetched anew at every launch: the first stages of A, what x has for them when the previous
    // kernel has ended, and then a stage in the place of each that is multiplied.
    Unit unit = first;
    int done = input_begin(first), slot = 0;
    float d[2][4] = {};
#pragma unroll 1
    for (int step = 0;; ++step) {
        if (step == 0 || step == STAGES) {
            if (step > 0) wait_for_previous_kernel();
            copied = first;
            begin_copying();
        }
        if (step >= 2 * STAGES) {
            while (done >= input_end(unit)) {
                store_unit(unit, d);
                if (unit.left == 0) return;
#pragma unroll
                for (int i = 0; i < 8; ++i) d[i / 4][i % 4] = 0.0f;
                advance(unit);
                done = input_begin(unit);
            }
            wait_for_copies<STAGES - 1>();
            multiply_stage(slot, d);
            done += STAGE_INPUTS;
        }
        // In the place of a lane's own bytes: nobody else needs to have read.
        copy_stage(slot, step < STAGES || step >= 2 * STAGES, step >= STAGES);
        slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
}
