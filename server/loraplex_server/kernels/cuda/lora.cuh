// What LoRA's kernels for small row tiles hand to one another.
#pragma once
#include "common.cuh"

#define THREADS (WARPS * 32)
#define RANKS 16  // of a fragment
#define MAX_MODULES 3

__device__ __forceinline__ int divide_up(int a, int b) { return (a + b - 1) / b; }

// a / b of a < 2^21 and b > 0, in a few instructions.
__device__ __forceinline__ int divide(int a, int b) { return __float2int_rd((a + 0.5f) * __frcp_rn(static_cast<float>(b))); }

// A row tile with its adapter's record of a projection (zeros for the base alone), as lora_plan.cu has found them.
struct Tile {
    int row, num_rows, end, pad;  // end: units of the first product, of this tile and those before it
    int a, total_rank, b[MAX_MODULES], ranks[MAX_MODULES];
};

#define TILE_INTS 12

static_assert(sizeof(Tile) == TILE_INTS * 4, "read as three times 16 bytes");
