// What LoRA's products of a step would otherwise find out in each launch: of every layer and projection, the row tiles with
// the records of their adapters, and how the first product is dealt out.
//
// Block (projection, layer). It starts no kernel early, and makes what it has written visible before it ends: the kernels that
// follow read the plan without waiting for it.
//
// Compile-time: WARPS, ROWS (of a unit of the first product), PART (its inputs).
#include "lora.cuh"

#define PROJECTIONS 4
#define RECORD_INTS 8

// Sum of the values of this thread and those before it in the block, and of all threads.
__device__ __forceinline__ int sum_up_to(int value, int& total) {
    __shared__ int of_warps[WARPS];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const int before = __shfl_up_sync(0xffffffffu, value, distance);
        if (lane >= distance) value += before;
    }
    if (lane == 31) of_warps[warp] = value;
    __syncthreads();
    total = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
        if (w < warp) value += of_warps[w];
        total += of_warps[w];
    }
    __syncthreads();
    return value;
}

extern "C" __global__ void __launch_bounds__(THREADS) lora_plan(
    const int* records, const int* row_tiles, int* all_tiles, int num_tiles, int slot_stride, int in_0, int in_1, int in_2,
    int in_3) {
    const int projection = blockIdx.x, index = blockIdx.y * PROJECTIONS + projection;
    const int in_features = projection == 0 ? in_0 : projection == 1 ? in_1 : projection == 2 ? in_2 : in_3;
    int4* const tiles = reinterpret_cast<int4*>(all_tiles + (long long)index * num_tiles * TILE_INTS);
    int before = 0;
    for (int first = 0; first < num_tiles; first += THREADS) {
        const int number = first + threadIdx.x;
        int4 rows = make_int4(0, 0, 0, 0), low = rows, high = rows;
        if (number < num_tiles) {
            rows = reinterpret_cast<const int4*>(row_tiles)[number];
            if (rows.y > 0 && rows.z >= 0) {
                const int4* const record =
                    reinterpret_cast<const int4*>(records + index * RECORD_INTS + (long long)rows.z * slot_stride);
                low = record[0], high = record[1];
            }
        }
        int total;
        const int units = divide_up(rows.y, ROWS) * divide_up(low.y, RANKS) * divide_up(in_features, PART);
        const int end = before + sum_up_to(units, total);
        if (number < num_tiles) {
            int4* const to = tiles + number * 3;
            to[0] = make_int4(rows.x, rows.y, end, 0), to[1] = low, to[2] = high;
        }
        before += total;
    }
    __threadfence();
}
