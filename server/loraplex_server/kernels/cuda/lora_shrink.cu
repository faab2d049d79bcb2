// LoRA's first product for rows that decode: shrunk [rows, rank_stride] = A x, for all adapters of a batch in one launch.
//
// Block (WARPS · PART of the inputs; row tile and group of ranks). It needs few registers and hardly any shared memory,
// so that it finds room beside a base product, which fills the multiprocessors with its own. A warp multiplies PART inputs
// straight from global memory: the inputs of a fragment are taken in the order in which 16-byte pieces of a row lie, the
// same for A and for x. Sums over warps, then over blocks, are added in the order of the inputs by the block that is last
// to finish: a row's result depends on the row and its adapter alone.
//
// Compile-time: DEPTH (products of ranks that are requested at once), MINB (blocks that a multiprocessor has room for at
// least).
#include "common.cuh"

#define WARPS 4
#define PART 128
#define CHUNKS (PART / 32)
#define TILE_ROWS 16
#define TILE_RANKS 16

extern "C" __global__ void __launch_bounds__(WARPS * 32, MINB) lora_shrink(
    const u16* x, u16* shrunk, float* parts, int* counters, const u16* arena, const int* records, const int* tiles,
    int record_start, int slot_stride, int x_stride, int split_stride, int in_features, int rank_stride, int groups) {
    __shared__ float sums[WARPS][TILE_ROWS][TILE_RANKS + 1];
    allow_next_kernel();

    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int4 tile = *reinterpret_cast<const int4*>(tiles + (blockIdx.y / groups) * 4);
    const int row_start = tile.x, num_rows = tile.y, slot = tile.z;
    int2 record = make_int2(0, 0);  // where A lies in the arena, in units of 8 elements, and its ranks
    if (num_rows > 0 && slot >= 0)
        record = *reinterpret_cast<const int2*>(records + record_start + (long long)slot * slot_stride);
    const int total_rank = record.y, first_rank = (blockIdx.y % groups) * TILE_RANKS, step = groups * TILE_RANKS;
    const int feature = (blockIdx.x * WARPS + warp) * PART + t * 8;
    const u16* const a_rows = arena + (long long)record.x * 8 + feature;

    uint4 a[DEPTH][2][CHUNKS];
    auto load_a = [&](int first, uint4 (&to)[2][CHUNKS]) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int rank = first + half * 8 + g;
#pragma unroll
            for (int c = 0; c < CHUNKS; ++c)
                to[half][c] = load_global16(a_rows + (long long)rank * in_features + c * 32,
                                     rank < total_rank && feature + c * 32 < in_features);
        }
    };
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) load_a(first_rank + d * step, a[d]);
    wait_for_previous_kernel();
    if (first_rank >= total_rank) return;

    uint4 b[TILE_ROWS / 8][CHUNKS];
#pragma unroll
    for (int nt = 0; nt < TILE_ROWS / 8; ++nt)
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c)
            b[nt][c] = load_global16(x + (long long)(row_start + nt * 8 + g) * x_stride + feature + c * 32,
                              nt * 8 + g < num_rows && feature + c * 32 < in_features);

    for (int begin = first_rank; begin < total_rank; begin += DEPTH * step) {
#pragma unroll
        for (int depth = 0; depth < DEPTH; ++depth) {
            const int first = begin + depth * step;
            if (first >= total_rank) break;
            const uint4(&low)[CHUNKS] = a[depth][0], (&high)[CHUNKS] = a[depth][1];
#pragma unroll
            for (int nt = 0; nt < TILE_ROWS / 8; ++nt) {
                if (nt * 8 >= num_rows) break;
                float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
                for (int c = 0; c < CHUNKS; ++c) {
                    mma_bf16(d, {low[c].x, high[c].x, low[c].y, high[c].y}, b[nt][c].x, b[nt][c].y);
                    mma_bf16(d, {low[c].z, high[c].z, low[c].w, high[c].w}, b[nt][c].z, b[nt][c].w);
                }
                float(*const rows)[TILE_RANKS + 1] = &sums[warp][nt * 8];
                rows[2 * t][g] = d[0];
                rows[2 * t + 1][g] = d[1];
                rows[2 * t][g + 8] = d[2];
                rows[2 * t + 1][g + 8] = d[3];
            }
            load_a(first + DEPTH * step, a[depth]);
            __syncthreads();
            for (int element = threadIdx.x; element < num_rows * TILE_RANKS; element += WARPS * 32) {
                const int row = element / TILE_RANKS, rank = element % TILE_RANKS;
                if (first + rank < total_rank) {
                    float sum = 0.0f;
#pragma unroll
                    for (int w = 0; w < WARPS; ++w) sum += sums[w][row][rank];
                    parts[blockIdx.x * (long long)split_stride + (long long)(row_start + row) * rank_stride + first +
                          rank] = sum;
                }
            }
            __syncthreads();
        }
    }

    __threadfence();
    __syncthreads();
    bool is_last = false;
    if (threadIdx.x == 0) {
        is_last = atomicAdd(counters + blockIdx.y, 1) == static_cast<int>(gridDim.x) - 1;
        if (is_last) counters[blockIdx.y] = 0;
    }
    if (!__syncthreads_or(is_last)) return;
    __threadfence();
    for (int first = first_rank; first < total_rank; first += step)
        for (int element = threadIdx.x; element < num_rows * TILE_RANKS; element += WARPS * 32) {
            const int rank = first + element % TILE_RANKS;
            if (rank < total_rank) {
                const long long place = (long long)(row_start + element / TILE_RANKS) * rank_stride + rank;
                float sum = 0.0f;
#pragma unroll 8
                for (int part = 0; part < static_cast<int>(gridDim.x); ++part)
                    sum += load_global_float(parts + part * (long long)split_stride + place);
                shrunk[place] = static_cast<u16>(to_bf16_pair(sum, 0.0f));
            }
        }
}
