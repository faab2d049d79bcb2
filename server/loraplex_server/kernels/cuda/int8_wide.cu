// Product of int8 activations with an int8 weight, as in int8.cu, for many rows: Hopper's asynchronous product with both
// operands in shared memory, where the tensor memory accelerator puts them. One thread of a group asks for the copies.
//
// A block of WN × WK warpgroups owns 64 · MT · WN outputs of 8 · NT rows; SK and WK cut the inputs as in int8.cu, in tiles of 128.
//
// Compile-time: NT (4, 8, 12, 16, 24 or 32), MT, WN, WK, SK, STAGES, MINB.
#include "int8.cuh"
#include "row_groups.cuh"
#include "tma.cuh"
#include "wgmma.cuh"

#define THREADS (WK * WN * 128)
#define X_STAGE (NT * 1024)
#define W_TILE 8192
#define W_STAGE (WN * MT * W_TILE)

extern "C" __global__ void CLUSTER __launch_bounds__(THREADS, MINB) int8_product(
    const __grid_constant__ TensorMap weight_map, const float* __restrict__ weight_scale,
    const __grid_constant__ TensorMap x_map, const float* __restrict__ x_scale, const u16* __restrict__ bias,
    u16* __restrict__ out, int m, int n, int k_tiles, int out_stride) {
    extern __shared__ __align__(1024) unsigned char dynamic_shared[];
    allow_next_kernel();

    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int wk = warp / (4 * WN), wn = warp / 4 % WN;
    const bool is_fetcher = threadIdx.x == wk * (WN * 128);
    const RowGroup at = row_group(m);
    const int first_output = at.column * (64 * WN * MT);
    auto local_tile = [&](int mt) { return (wn * MT + mt) * 4 + (warp & 3); };
    const int part = cluster_rank() * WK + wk;
    const int k_begin = part * k_tiles / (SK * WK), k_end = (part + 1) * k_tiles / (SK * WK);
    const int stages = k_end - k_begin;

    const u32 base = shared_address(dynamic_shared);
    const u32 stage_base = base + wk * STAGES * (W_STAGE + X_STAGE);
    const u32 all_barriers = base + max(WK * STAGES * (W_STAGE + X_STAGE), sum_bytes(4 * WN * MT));
    const u32 full = all_barriers + wk * (STAGES * 16), empty = full + STAGES * 8;

    if (is_fetcher) {
        prefetch_map(&weight_map);
        prefetch_map(&x_map);
        for (int s = 0; s < STAGES; ++s) init_barrier(full + s * 8, 1), init_barrier(empty + s * 8, 4 * WN);
        fence_barrier_init();
    }
    __syncthreads();

    auto fetch_weights = [&](int stage) {
        const int slot = stage % STAGES;
        expect_bytes(full + slot * 8, W_STAGE + X_STAGE);
#pragma unroll
        for (int tile = 0; tile < WN * MT; ++tile)
            copy_box(stage_base + slot * (W_STAGE + X_STAGE) + tile * W_TILE, &weight_map, (k_begin + stage) * 128,
                     first_output + tile * 64, full + slot * 8);
    };
    auto fetch_x = [&](int stage) {
        const int slot = stage % STAGES;
        copy_box(stage_base + slot * (W_STAGE + X_STAGE) + W_STAGE, &x_map, (k_begin + stage) * 128, at.first_row,
                 full + slot * 8);
    };

    if (is_fetcher)
        for (int s = 0; s < min(STAGES - 1, stages); ++s) fetch_weights(s);
    wait_for_previous_kernel();
    if (is_fetcher)
        for (int s = 0; s < min(STAGES - 1, stages); ++s) fetch_x(s);
    __syncthreads();

    int sums[MT][NT][4];
#pragma unroll
    for (int mt = 0; mt < MT; ++mt)
#pragma unroll
        for (int nt = 0; nt < NT; ++nt)
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[mt][nt][i] = 0;

    int slot = 0;
    u32 parity = 0;
    for (int stage = 0; stage < stages; ++stage) {
        wait_barrier(full + slot * 8, parity);
        const u32 weights = stage_base + slot * (W_STAGE + X_STAGE);
        const u64 b = rows_descriptor(weights + W_STAGE);
        wgmma_fence();
#pragma unroll
        for (int mt = 0; mt < MT; ++mt) {
            const u64 a = rows_descriptor(weights + (wn * MT + mt) * W_TILE);
#pragma unroll
            for (int s = 0; s < 4; ++s) wgmma_int8(sums[mt], a + 2 * s, b + 2 * s);
        }
        wgmma_commit();
        wgmma_wait<1>();  // the stage before is read
        if (stage > 0) {
            const int before = slot == 0 ? STAGES - 1 : slot - 1;
            if (lane == 0) arrive_at(empty + before * 8);
            const int next = stage - 1 + STAGES;
            if (is_fetcher && next < stages) {
                wait_barrier(empty + before * 8, ((stage - 1) / STAGES) & 1);
                fetch_weights(next);
                fetch_x(next);
            }
            __syncwarp();
        } else if (is_fetcher && STAGES - 1 < stages) {
            fetch_weights(STAGES - 1);
            fetch_x(STAGES - 1);
        }
        if (++slot == STAGES) {
            slot = 0;
            parity ^= 1;
        }
    }
    wait_for_sums(sums);

    add_parts<4 * WN * MT, 4 * WN * WK>(base, wk, sums, local_tile, [&](int tile, int nt, const int* d) {
        store_outputs(out + static_cast<long long>(at.first_row) * out_stride, out_stride, weight_scale,
                      x_scale + at.first_row, bias, at.column * (4 * WN * MT) + tile, n, nt, m - at.first_row, d);
    });
}
