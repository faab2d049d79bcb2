// LoRA's second product for small row tiles: B (A x) of all adapters of a batch and all modules of a projection, added to
// y or, unless ADD, written there, with zeros where a row's adapter leaves the module alone.
//
// Block (WARPS · COLUMNS columns within one module; row tile). It needs few registers and hardly any shared
// memory, and so runs beside a base product. B comes straight from global memory, 16 bytes of a rank's row to a
// lane. As pairs of columns, these bytes are fragments of 8 ranks × 8 columns; transposed between lanes they are what the
// tensor cores take, with the columns in such an order that a lane ends with 8 neighbours of one row. The parts of A x are
// added up first, and the sums held in shared memory, so that they are asked for once.
//
// Compile-time: WARPS, ADD, GROUPS (of 32 columns, of one warp), DEPTH (steps of ranks that are requested at once), ITEMS
// and BATCH (numbers of A x that a thread adds up at once, and their parts that are requested at once), MINB (blocks that a
// multiprocessor has room for at least).
#include "lora.cuh"

#define COLUMNS (GROUPS * 32)
#define BLOCK_COLUMNS (WARPS * COLUMNS)
#define HELD_RANKS 128  // of A x at once
#define TILE_ROWS 16

static_assert(HELD_RANKS % (DEPTH * RANKS) == 0, "ranks are held from where a round of steps begins");

typedef u16 HeldRows[TILE_ROWS][HELD_RANKS + 8];  // the rows of a fragment lie in different banks

// held [row, rank] = sums of parts, in bf16; zeros behind the last rank of a fragment. To be called by the whole block.
__device__ __forceinline__ void add_parts(HeldRows& held, const float* parts, int num_parts, int part_stride,
                                          int rank_stride, int rows, int ranks) {
    const int width = divide_up(ranks, RANKS) * RANKS, count = rows * width;
    for (int begin = threadIdx.x; begin < count; begin += ITEMS * THREADS) {
        int from[ITEMS], to[ITEMS];
        bool is_there[ITEMS];
        float sums[ITEMS] = {};
#pragma unroll
        for (int item = 0; item < ITEMS; ++item) {
            const int index = begin + item * THREADS, row = divide(index, width), rank = index - row * width;
            from[item] = row * rank_stride + rank;
            is_there[item] = index < count && rank < ranks;
            to[item] = row * (HELD_RANKS + 8) + rank;
        }
#pragma unroll 1
        for (int first = 0; first < num_parts; first += BATCH) {
            float part[ITEMS][BATCH];
#pragma unroll
            for (int item = 0; item < ITEMS; ++item)
#pragma unroll
                for (int i = 0; i < BATCH; ++i)
                    part[item][i] = load_global_float(parts + from[item] + (first + i) * part_stride,
                                                      is_there[item] && first + i < num_parts);
#pragma unroll
            for (int item = 0; item < ITEMS; ++item)
#pragma unroll
                for (int i = 0; i < BATCH; ++i) sums[item] += part[item][i];
        }
#pragma unroll
        for (int item = 0; item < ITEMS; ++item)
            if (begin + item * THREADS < count) (&held[0][0])[to[item]] = static_cast<u16>(to_bf16_pair(sums[item], 0.0f));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, MINB) lora_expand(
    u16* y, const float* parts, const u16* arena, const int4* tiles, int y_stride, int end_0, int end_1, int end_2,
    int num_parts, int part_stride, int rank_stride) {
    __shared__ __align__(16) HeldRows held;
    allow_next_kernel();

    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    // Blocks of columns do not span modules.
    const int first_1 = (end_0 + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS;
    const int first_2 = first_1 + (end_1 - end_0 + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS;
    const int block = blockIdx.x, module = (block >= first_1) + (block >= first_2);
    const int module_column = module == 0 ? 0 : module == 1 ? end_0 : end_1;
    const int width = (module == 0 ? end_0 : module == 1 ? end_1 : end_2) - module_column;
    const int column = (block - (module == 0 ? 0 : module == 1 ? first_1 : first_2)) * BLOCK_COLUMNS + warp * COLUMNS + t * 8;

    const int4* const from = tiles + blockIdx.y * 3;
    const int4 place = from[0], low = from[1], high = from[2];  // of a Tile
    const int row_start = place.x, num_rows = place.y;
    const int rank = module == 0 ? high.y : module == 1 ? high.z : high.w;
    const int rank_start = module == 0 ? 0 : module == 1 ? high.y : high.y + high.z;
    const u16* const b_rows = arena + (long long)(module == 0 ? low.z : module == 1 ? low.w : high.x) * 8 + column;

    uint4 b[DEPTH][2][GROUPS];  // 8 ranks each
    auto load_b = [&](int first, uint4 (&to)[2][GROUPS]) {
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int group = 0; group < GROUPS; ++group)
                to[half][group] = load_global16(b_rows + (long long)(first + half * 8 + g) * width + group * 32,
                                         first + half * 8 + g < rank && column + group * 32 < width);
    };
#pragma unroll
    for (int depth = 0; depth < DEPTH; ++depth) load_b(depth * RANKS, b[depth]);
    wait_for_previous_kernel();
    if (num_rows <= 0 || (ADD && rank == 0)) return;

    // 8 columns of row g or g + 8 of the tile.
    auto is_in_y = [&](int group, int half) { return g + half * 8 < num_rows && column + group * 32 < width; };
    u16* const first_in_y = y + (long long)(row_start + g) * y_stride + module_column + column;
    auto place_in_y = [&](int group, int half) { return first_in_y + half * 8 * (long long)y_stride + group * 32; };

    float sums[GROUPS][4][4];
#pragma unroll
    for (int group = 0; group < GROUPS; ++group)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint4 before = load_global16(place_in_y(group, half), ADD && is_in_y(group, half));
            const u32 pairs[4] = {before.x, before.y, before.z, before.w};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                sums[group][j][half * 2] = from_bf16(static_cast<u16>(pairs[j]));
                sums[group][j][half * 2 + 1] = from_bf16(static_cast<u16>(pairs[j] >> 16));
            }
        }

    const float* const of_rows = parts + (long long)row_start * rank_stride + rank_start;
    const u32 fragment = shared_address(&held[lane & 15][(lane >> 4) * 8]);
    for (int begin = 0; begin < rank; begin += DEPTH * RANKS) {
        if (begin % HELD_RANKS == 0) {
            if (begin > 0) __syncthreads();
            add_parts(held, of_rows + begin, num_parts, part_stride, rank_stride, num_rows, min(HELD_RANKS, rank - begin));
            __syncthreads();
        }
#pragma unroll
        for (int depth = 0; depth < DEPTH; ++depth) {
            if (begin + depth * RANKS >= rank) break;
            const uint4 a = load_matrices(fragment + (begin + depth * RANKS) % HELD_RANKS * 2);
#pragma unroll
            for (int group = 0; group < GROUPS; ++group) {
                const uint4 low = b[depth][0][group], high = b[depth][1][group];
                mma_bf16(sums[group][0], {a.x, a.y, a.z, a.w}, transpose_8x8(low.x), transpose_8x8(high.x));
                mma_bf16(sums[group][1], {a.x, a.y, a.z, a.w}, transpose_8x8(low.y), transpose_8x8(high.y));
                mma_bf16(sums[group][2], {a.x, a.y, a.z, a.w}, transpose_8x8(low.z), transpose_8x8(high.z));
                mma_bf16(sums[group][3], {a.x, a.y, a.z, a.w}, transpose_8x8(low.w), transpose_8x8(high.w));
            }
            load_b(begin + (DEPTH + depth) * RANKS, b[depth]);
        }
    }

#pragma unroll
    for (int group = 0; group < GROUPS; ++group)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (!is_in_y(group, half)) continue;
            const float(&d)[4][4] = sums[group];
            const int i = half * 2;
            *reinterpret_cast<uint4*>(place_in_y(group, half)) =
                make_uint4(to_bf16_pair(d[0][i], d[0][i + 1]), to_bf16_pair(d[1][i], d[1][i + 1]),
                           to_bf16_pair(d[2][i], d[2][i + 1]), to_bf16_pair(d[3][i], d[3][i + 1]));
        }
}
