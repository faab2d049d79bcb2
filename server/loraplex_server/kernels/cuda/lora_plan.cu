// What LoRA's products of a step would otherwise find out in each launch: of every layer and projection, the row tiles with
// the records of their adapters, and where the work of each tile ends (see lora.cuh).
//
// Block (projection, layer). It starts no kernel early: those that follow read the plan without waiting for it.
#include "lora.cuh"

#define PROJECTIONS 4
#define RECORD_INTS 8
#define SHAPE_INTS 5  // parts of the inputs, blocks of columns of each module, whether the second product adds

// Sums of x and y over this thread and those before it in the block, and over all threads.
__device__ __forceinline__ int2 sum_up_to(int2 value, int2& total) {
    __shared__ int2 of_warps[WARPS];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const int x = __shfl_up_sync(ALL_LANES, value.x, distance), y = __shfl_up_sync(ALL_LANES, value.y, distance);
        if (lane >= distance) value.x += x, value.y += y;
    }
    if (lane == 31) of_warps[warp] = value;
    __syncthreads();
    total = make_int2(0, 0);
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
        if (w < warp) value.x += of_warps[w].x, value.y += of_warps[w].y;
        total.x += of_warps[w].x, total.y += of_warps[w].y;
    }
    __syncthreads();
    return value;
}

extern "C" __global__ void __launch_bounds__(THREADS) lora_plan(
    const int* records, const int* table, const int* shapes, int* all_plans, int num_tiles, int slot_stride) {
    wait_for_previous_kernel();
    const int index = blockIdx.y * PROJECTIONS + blockIdx.x;
    const int* const shape = shapes + blockIdx.x * SHAPE_INTS;
    int* const plan = all_plans + (long long)index * num_tiles * PLAN_INTS;
    int2 before = make_int2(0, 0);
    for (int first = 0; first < num_tiles; first += THREADS) {
        const int number = first + threadIdx.x;
        int2 work = make_int2(0, 0), total;
        if (number < num_tiles) {
            const int4 rows = *reinterpret_cast<const int4*>(table + number * 4);
            int4 low = make_int4(0, 0, 0, 0), high = low;
            if (rows.y > 0 && rows.z >= 0) {
                const int4* const record =
                    reinterpret_cast<const int4*>(records + index * RECORD_INTS + (long long)rows.z * slot_stride);
                low = record[0], high = record[1];
            }
            int4* const to = reinterpret_cast<int4*>(plan + number * TILE_INTS);
            to[0] = rows, to[1] = low, to[2] = high;
            const int ranks[MAX_MODULES] = {high.y, high.z, high.w};
            int stages = 0;
            for (int module = 0; module < MAX_MODULES; ++module)
                stages += shape[1 + module] * stages_of_ranks(ranks[module], shape[4]);
            const int subs = divide_up(rows.y, ROWS);
            work = make_int2(subs * divide_up(low.y, RANKS) * shape[0], subs * stages);
        }
        const int2 end = sum_up_to(work, total);
        if (number < num_tiles) {
            plan[num_tiles * TILE_INTS + number] = before.x + end.x;
            plan[num_tiles * (TILE_INTS + 1) + number] = before.y + end.y;
        }
        before.x += total.x, before.y += total.y;
    }
}
