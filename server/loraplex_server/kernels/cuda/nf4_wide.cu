// Product with a weight in NF4, read once: y [m, N] = x [m, K] · Wᵀ + bias, m ≤ 8 · NT rows. For many rows: Hopper's
// asynchronous product, weights from registers, x from shared memory.
//
// A block of WN × WK warpgroups owns 64 · MT · WN outputs; SK and WK cut the inputs as in nf4.cu. While a tile is
// multiplied, the fragments of the next one are made.
//
// Compile-time: NT (4, 8, 12 or 16), MT, WN, WK, SK, STAGES, EXACT, MINB, as in nf4.cu.
#include "nf4.cuh"
#include "wgmma.cuh"

#define GROUP (WN * 128)
#define THREADS (WK * GROUP)
#define X_STAGE (NT * 1024)
#define W_STAGE (MT * RECORD)

__shared__ Entry table[256 * COPIES];

extern "C" __global__ void CLUSTER __launch_bounds__(THREADS, MINB) nf4_product(
    const unsigned char* __restrict__ records, const u16* __restrict__ x, const u16* __restrict__ bias,
    u16* __restrict__ out, int m, int n, int k_tiles, int x_stride, int out_stride) {
    extern __shared__ __align__(1024) unsigned char dynamic_shared[];
    allow_next_kernel();

    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int wk = warp / (4 * WN), wn = warp / 4 % WN, in_group = threadIdx.x - wk * GROUP;
    const int n_tiles = (n + 15) >> 4;
    auto local_tile = [&](int mt) { return (wn * MT + mt) * 4 + (warp & 3); };
    const int part = cluster_rank() * WK + wk;
    const int k_begin = part * k_tiles / (SK * WK), k_end = (part + 1) * k_tiles / (SK * WK);
    const int stages = k_end - k_begin;

    const u32 base = shared_address(dynamic_shared);
    const u32 activations = base + wk * (STAGES * X_STAGE);
    const u32 weights = base + WK * STAGES * X_STAGE + warp * (STAGES * W_STAGE);
    const u32 barriers = base + WK * STAGES * X_STAGE + WK * WN * 4 * STAGES * W_STAGE + warp * (STAGES * 8);

    if (lane == 0) {
        for (int s = 0; s < STAGES; ++s) init_barrier(barriers + s * 8, 1);
        fence_barrier_init();
    }
    __syncwarp();

    auto fetch_weights = [&](int stage) {
        if (lane == 0 && stage < stages) {
            const int slot = stage % STAGES;
            expect_bytes(barriers + slot * 8, MT * RECORD);
#pragma unroll
            for (int mt = 0; mt < MT; ++mt) {
                const long long tile = min(static_cast<int>(blockIdx.x) * (4 * WN * MT) + local_tile(mt), n_tiles - 1);
                copy_bulk(weights + slot * W_STAGE + mt * RECORD, records + (tile * k_tiles + k_begin + stage) * RECORD,
                          RECORD, barriers + slot * 8);
            }
        }
    };
    auto fetch_x = [&](int stage) {
        if (stage < stages) {
            const u32 to = activations + (stage % STAGES) * X_STAGE;
#pragma unroll
            for (int i = 0; i < (NT * 64 + GROUP - 1) / GROUP; ++i) {
                const int chunk = i * GROUP + in_group, row = chunk >> 3, piece = chunk & 7;
                if (row < NT * 8 && row < m)
                    copy_async(to + row * 128 + ((piece ^ (row & 7)) << 4),
                               x + (long long)row * x_stride + (k_begin + stage) * 64 + piece * 8);
            }
        }
        commit_copies();
    };

    for (int s = 0; s < STAGES - 1; ++s) fetch_weights(s);
    fill_table(table, warp, THREADS / 32);
    wait_for_previous_kernel();
    for (int s = 0; s < STAGES - 1; ++s) fetch_x(s);
    __syncthreads();

    float sums[MT][NT][4];
#pragma unroll
    for (int mt = 0; mt < MT; ++mt)
#pragma unroll
        for (int nt = 0; nt < NT; ++nt)
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[mt][nt][i] = 0.0f;

    u32 a[2][MT][4][4];
    float2 scale[2][MT];
    auto load_stage = [&](int stage, u32 (&fragments)[MT][4][4], float2 (&scales)[MT]) {
        const int slot = stage % STAGES;
        wait_barrier(barriers + slot * 8, stage / STAGES & 1);
#pragma unroll
        for (int mt = 0; mt < MT; ++mt)
            load_fragments(weights + slot * W_STAGE + mt * RECORD, table, fragments[mt], scales[mt]);
    };
    auto multiply = [&](int stage, u32 (&now)[MT][4][4], float2 (&now_scale)[MT], u32 (&next)[MT][4][4],
                        float2 (&next_scale)[MT]) {
        wait_for_copies<STAGES - 2>();
        fence_async_proxy();
        sync_group<GROUP>(1 + wk);  // x is there for every warp, and the slot before this one is read
        fetch_weights(stage + STAGES - 1);
        fetch_x(stage + STAGES - 1);
        const u64 b = x_descriptor(activations + stage % STAGES * X_STAGE);
#if EXACT
        wgmma_fence();
#pragma unroll
        for (int mt = 0; mt < MT; ++mt)
#pragma unroll
            for (int s = 0; s < 4; ++s) wgmma_bf16(sums[mt], now[mt][s], b + 2 * s, 1);
        wgmma_commit();
        if (stage + 1 < stages) load_stage(stage + 1, next, next_scale);
        wgmma_wait();
#else
#pragma unroll
        for (int mt = 0; mt < MT; ++mt) {
            float d[NT][4];
            wgmma_fence();
#pragma unroll
            for (int s = 0; s < 4; ++s) wgmma_bf16(d, now[mt][s], b + 2 * s, s > 0);
            wgmma_commit();
            if (mt == 0 && stage + 1 < stages) load_stage(stage + 1, next, next_scale);
            wgmma_wait();
#pragma unroll
            for (int nt = 0; nt < NT; ++nt) add_scaled(sums[mt][nt], d[nt], now_scale[mt]);
        }
#endif
    };
    if (stages > 0) load_stage(0, a[0], scale[0]);
    for (int stage = 0; stage < stages; stage += 2) {
        multiply(stage, a[0], scale[0], a[1], scale[1]);
        if (stage + 1 < stages) multiply(stage + 1, a[1], scale[1], a[0], scale[0]);
    }
    add_parts<4 * WN * MT, 4 * WN * WK>(base, wk, sums, local_tile, [&](int tile, int nt, const float* d) {
        store_outputs(out, out_stride, bias, blockIdx.x * (4 * WN * MT) + tile, n, nt, m, d);
    });
}
