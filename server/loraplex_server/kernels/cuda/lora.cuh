// What LoRA's two products for rows that decode share: how a batch is dealt out to the blocks of a launch.
//
// A block for each multiprocessor stays for the whole launch. It has an equal, contiguous share of the batch, and each of
// its warps keeps STAGES copies of weights under way in its part of shared memory, from its first weight to its last, so that
// the bus does not pause for it. That takes few registers and little shared memory: a block finds room beside a base
// product, which leaves a good part of the bus idle.
//
// Compile-time: WARPS (of a block), STAGES (copies under way of one warp), MINB (blocks that a multiprocessor has room for
// at least).
#pragma once
#include "common.cuh"

#define THREADS (WARPS * 32)
#define RANKS 16  // of a fragment
#define ROWS 8    // of a fragment; a tile of more rows is two subs
#define MAX_MODULES 3
#define ALL_LANES 0xffffffffu

__device__ __forceinline__ int divide_up(int a, int b) { return (a + b - 1) / b; }

// a / b of a < 2^21 and b > 0, in a few instructions.
__device__ __forceinline__ int divide(int a, int b) { return __float2int_rd((a + 0.5f) * __frcp_rn(static_cast<float>(b))); }

// A row tile and its adapter's record.
struct Tile {
    int row, num_rows, pad[2];
    int a, total_rank, b[MAX_MODULES], ranks[MAX_MODULES];

    __device__ int num_subs() const { return divide_up(num_rows, ROWS); }
    __device__ int rows_of(int sub) const { return min(ROWS, num_rows - sub * ROWS); }
    __device__ int num_groups() const { return divide_up(total_rank, RANKS); }
    __device__ int rank_start(int module) const { return module == 0 ? 0 : module == 1 ? ranks[0] : ranks[0] + ranks[1]; }
};

static_assert(sizeof(Tile) == 48, "read as three times 16 bytes");

// Stages of one block of columns of a module. Without ranks there are zeros to be written, unless they were added.
__device__ __forceinline__ int stages_of_ranks(int ranks, bool adds) {
    return adds ? divide_up(ranks, RANKS) : max(1, divide_up(ranks, RANKS));
}

// The row tiles of a launch, and where the work of each ends.
struct Work {
    const Tile* tiles;
    const int* ends;
    int num_tiles, total;

    // Where a piece of work lies; to be called by a whole warp. `rest`: its place within the tile.
    __device__ int tile_of(int place, int& rest) const {
        const int lane = threadIdx.x & 31;
        int tile = 0;
        for (int first = 0; first < num_tiles; first += 32) {
            const bool is_before = first + lane < num_tiles && ends[first + lane] <= place;
            const int count = __popc(__ballot_sync(ALL_LANES, is_before));
            tile += count;
            if (count < 32) break;
        }
        rest = place - (tile == 0 ? 0 : ends[tile - 1]);
        return tile;
    }

    // The next tile with work, or num_tiles.
    __device__ int after(int tile) const {
        const int end = ends[tile];
        do ++tile;
        while (tile < num_tiles && ends[tile] == end);
        return tile;
    }

    // What belongs to one of several who do it.
    __device__ void share(int index, int count, int& begin, int& end) const {
        begin = static_cast<int>(static_cast<long long>(total) * index / count);
        end = static_cast<int>(static_cast<long long>(total) * (index + 1) / count);
    }
};

// What lora_plan.cu has prepared for a projection of a layer, num_tiles · PLAN_INTS: the tiles, where the work of each ends
// for the first product, and for the second.
#define TILE_INTS 12
#define PLAN_INTS 16  // a multiple of 16 bytes

// Reads it into `memory`, shared, num_tiles · TILE_BYTES. To be called by the whole block.
#define TILE_BYTES 52

__device__ __forceinline__ Work load_work(unsigned char* memory, const int* plan, int num_tiles, int product) {
    int4* const tiles = reinterpret_cast<int4*>(memory);
    int* const ends = reinterpret_cast<int*>(memory) + num_tiles * TILE_INTS;
#pragma unroll 1
    for (int i = threadIdx.x; i < num_tiles * 3; i += THREADS) tiles[i] = reinterpret_cast<const int4*>(plan)[i];
#pragma unroll 1
    for (int i = threadIdx.x; i < num_tiles; i += THREADS) ends[i] = plan[num_tiles * (TILE_INTS + product) + i];
    __syncthreads();
    return {reinterpret_cast<const Tile*>(memory), ends, num_tiles, ends[num_tiles - 1]};
}
