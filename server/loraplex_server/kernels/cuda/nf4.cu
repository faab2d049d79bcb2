// Product with a weight in NF4, read once: y [m, N] = x [m, K] · Wᵀ + bias, m ≤ 8 · NT rows. For few rows.
//
// A block of WN × WK warps owns 16 · MT · WN outputs. The inputs are cut into SK · WK parts, for the blocks of a
// cluster and the warps of each; their sums are added in a fixed order. A row's result depends on SK · WK alone: not on
// the other rows, nor on how many there are.
//
// Compile-time: NT, MT, WN, WK, SK, KS (tiles along K per stage), STAGES, XR (rows of x held per stage: 8 · NT, or
// fewer), EXACT (each weight is rounded to bf16 as bitsandbytes does; otherwise the table is bf16 and the sum of a tile
// is scaled), MINB (blocks per multiprocessor at least).
#include "nf4.cuh"

#define GROUP (WN * 32)
#define THREADS (WK * GROUP)
#define X_STAGE (XR * KS * 128)
#define W_STAGE (MT * KS * RECORD)

__shared__ Entry table[256 * COPIES];

extern "C" __global__ void CLUSTER __launch_bounds__(THREADS, MINB) nf4_product(
    const unsigned char* __restrict__ records, const u16* __restrict__ x, const u16* __restrict__ bias,
    u16* __restrict__ out, int m, int n, int k_tiles, int x_stride, int out_stride) {
    extern __shared__ __align__(1024) unsigned char dynamic_shared[];
    allow_next_kernel();

    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int wk = warp / WN, wn = warp % WN, in_group = threadIdx.x - wk * GROUP;
    const int n_tiles = (n + 15) >> 4;
    const int tile0 = (blockIdx.x * WN + wn) * MT;
    const int part = cluster_rank() * WK + wk;
    const int k_begin = part * k_tiles / (SK * WK), k_end = (part + 1) * k_tiles / (SK * WK);
    const int stages = (k_end - k_begin + KS - 1) / KS;

    const u32 base = shared_address(dynamic_shared);
    const u32 activations = base + wk * (STAGES * X_STAGE);
    const u32 weights = base + WK * STAGES * X_STAGE + warp * (STAGES * W_STAGE);
    const u32 all_barriers = base + max(STAGES * (WK * X_STAGE + WK * WN * W_STAGE), sum_bytes(WN * MT));
    const u32 barriers = all_barriers + warp * (STAGES * 8);

    if (lane == 0) {
        for (int s = 0; s < STAGES; ++s) init_barrier(barriers + s * 8, 1);
        fence_barrier_init();
    }
    __syncwarp();

    auto fetch_weights = [&](int stage) {
        if (lane == 0 && stage < stages) {
            const int slot = stage % STAGES, k = k_begin + stage * KS;
            const u32 bytes = min(KS, k_end - k) * RECORD;
            expect_bytes(barriers + slot * 8, MT * bytes);
#pragma unroll
            for (int mt = 0; mt < MT; ++mt) {
                const long long tile = min(tile0 + mt, n_tiles - 1);
                copy_bulk(weights + slot * W_STAGE + mt * (KS * RECORD), records + (tile * k_tiles + k) * RECORD, bytes,
                          barriers + slot * 8);
            }
        }
    };
    // x lies tile by tile; the 16-byte pieces of 8 rows are interleaved so that they do not share banks.
    auto fetch_x = [&](int stage) {
        if (stage < stages) {
            const u32 to = activations + (stage % STAGES) * X_STAGE;
            const int k = k_begin + stage * KS;
#pragma unroll
            for (int i = 0; i < (XR * KS * 8 + GROUP - 1) / GROUP; ++i) {
                const int chunk = i * GROUP + in_group, row = chunk / (KS * 8), ks = chunk % (KS * 8) >> 3, piece = chunk & 7;
                if (row < XR && row < m && k + ks < k_end) {
                    copy_async(to + (ks * XR + row) * 128 + ((piece ^ (row & 7)) << 4),
                               x + (long long)row * x_stride + (k + ks) * 64 + piece * 8);
                }
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

    int slot = 0;
    u32 parity = 0;
    for (int stage = 0; stage < stages; ++stage) {
        wait_for_copies<STAGES - 2>();
        wait_barrier(barriers + slot * 8, parity);
        sync_group<GROUP>(1 + wk);  // x is there for every warp, and the slot before this one is read
        fetch_weights(stage + STAGES - 1);
        fetch_x(stage + STAGES - 1);

        const int tiles = min(KS, k_end - (k_begin + stage * KS));
#pragma unroll
        for (int ks = 0; ks < KS; ++ks) {
            if (ks < tiles) {
                u32 a[MT][4][4];
                float2 scale[MT];
#pragma unroll
                for (int mt = 0; mt < MT; ++mt)
                    load_fragments(weights + slot * W_STAGE + (mt * KS + ks) * RECORD, table, a[mt], scale[mt]);
#pragma unroll
                for (int nt = 0; nt < NT; ++nt) {
                    const int row = XR < 8 ? (lane & 7) % XR : nt * 8 + (lane & 7);
                    const u32 line = activations + slot * X_STAGE + (ks * XR + row) * 128;
                    const u32 piece = (lane >> 3) ^ (row & 7);
                    const uint4 b_low = load_matrices(line + piece * 16);
                    const uint4 b_high = load_matrices(line + (piece ^ 4) * 16);
#pragma unroll
                    for (int mt = 0; mt < MT; ++mt) {
#if EXACT
                        float(&d)[4] = sums[mt][nt];
#else
                        float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#endif
                        mma_bf16(d, a[mt][0], b_low.x, b_low.y);
                        mma_bf16(d, a[mt][1], b_low.z, b_low.w);
                        mma_bf16(d, a[mt][2], b_high.x, b_high.y);
                        mma_bf16(d, a[mt][3], b_high.z, b_high.w);
#if !EXACT
                        add_scaled(sums[mt][nt], d, scale[mt]);
#endif
                    }
                }
            }
        }
        if (++slot == STAGES) {
            slot = 0;
            parity ^= 1;
        }
    }
    add_parts<WN * MT, WN * WK>(
        base, wk, sums, [&](int mt) { return wn * MT + mt; },
        [&](int tile, int nt, const float* d) {
            store_outputs(out, out_stride, bias, blockIdx.x * (WN * MT) + tile, n, nt, m, d);
        });
}
