// Product with a weight in NF4: y [m, N] = x [m, K] · Wᵀ + bias. For many rows: Hopper's asynchronous product, weights from
// registers, x from shared memory.
//
// A block of WN × WK warpgroups owns 64 · MT · WN outputs of 8 · NT rows; what another block of the same outputs and other
// rows reads of the weight is in L2. SK and WK cut the inputs as in nf4.cu. While a tile is
// multiplied, the fragments of the next one are made, with their scales: then nothing waits for a sum. x comes by the
// tensor memory accelerator, so that no warp waits for another but at the place where its x will be overwritten. What is
// bound here is the number of instructions for a weight, hence KS tiles between two looks at a barrier.
//
// Compile-time: NT (4, 8, 12, 16, 24 or 32), MT, WN, WK, SK, KS (even), STAGES, EXACT, MINB, as in nf4.cu.
#include "nf4.cuh"
#include "row_groups.cuh"
#include "tma.cuh"
#include "wgmma.cuh"

#define GROUP (WN * 128)
#define THREADS (WK * GROUP)
#define X_TILE (NT * 1024)
#define X_STAGE (KS * X_TILE)
#define W_STAGE (MT * KS * RECORD)

__shared__ Entry table[256 * COPIES];

extern "C" __global__ void CLUSTER __launch_bounds__(THREADS, MINB) nf4_product(
    const unsigned char* __restrict__ records, const __grid_constant__ TensorMap x_map, const u16* __restrict__ bias,
    u16* __restrict__ out, int m, int n, int k_tiles, int out_stride) {
    extern __shared__ __align__(1024) unsigned char dynamic_shared[];
    allow_next_kernel();

    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int wk = warp / (4 * WN), wn = warp / 4 % WN, in_group = threadIdx.x - wk * GROUP;
    const int n_tiles = (n + 15) >> 4;
    const RowGroup at = row_group(m);
    auto local_tile = [&](int mt) { return (wn * MT + mt) * 4 + (warp & 3); };
    const int part = cluster_rank() * WK + wk;
    const int k_begin = part * k_tiles / (SK * WK), k_end = (part + 1) * k_tiles / (SK * WK);
    // A part without tiles has a stage of zeros: a loop that always runs leaves its sums where the products put them.
    const int stages = max(1, (k_end - k_begin + KS - 1) / KS);

    const u32 base = shared_address(dynamic_shared);
    const u32 activations = base + wk * (STAGES * X_STAGE);
    const u32 weights = base + WK * STAGES * X_STAGE + warp * (STAGES * W_STAGE);
    const u32 all_barriers = base + max(STAGES * (WK * X_STAGE + WK * WN * 4 * W_STAGE), sum_bytes(4 * WN * MT));
    const u32 barriers = all_barriers + warp * (STAGES * 8);  // its weights are there
    const u32 full = all_barriers + (WK * WN * 4 + wk) * (STAGES * 8), empty = full + WK * STAGES * 8;  // x

    if (lane == 0) {
        for (int s = 0; s < STAGES; ++s) init_barrier(barriers + s * 8, 1);
        if (in_group == 0) {
            prefetch_map(&x_map);
            for (int s = 0; s < STAGES; ++s) init_barrier(full + s * 8, 1), init_barrier(empty + s * 8, 4 * WN);
        }
        fence_barrier_init();
    }
    __syncthreads();

    auto fetch_weights = [&](int stage) {
        if (lane == 0 && stage < stages) {
            const int slot = stage % STAGES, k = k_begin + stage * KS;
            const u32 bytes = min(KS, k_end - k) * RECORD;
            expect_bytes(barriers + slot * 8, MT * bytes);
#pragma unroll
            for (int mt = 0; mt < MT; ++mt) {
                const long long tile = min(at.column * (4 * WN * MT) + local_tile(mt), n_tiles - 1);
                if (bytes > 0)
                    copy_bulk(weights + slot * W_STAGE + mt * (KS * RECORD), records + (tile * k_tiles + k) * RECORD,
                              bytes, barriers + slot * 8);
            }
        }
    };
    // Tiles beyond the part come from beyond the matrix, as zeros.
    auto fetch_x = [&](int stage) {
        if (in_group == 0 && stage < stages) {
            const int slot = stage % STAGES, k = k_begin + stage * KS;
            if (stage >= STAGES) wait_barrier(empty + slot * 8, (stage / STAGES - 1) & 1);
            expect_bytes(full + slot * 8, X_STAGE);
#pragma unroll
            for (int ks = 0; ks < KS; ++ks)
                copy_box(activations + slot * X_STAGE + ks * X_TILE, &x_map, (k + ks < k_end ? k + ks : k_tiles) * 64,
                         at.first_row, full + slot * 8);
        }
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
    auto load_tile = [&](int stage, int slot, int ks, u32 (&fragments)[MT][4][4]) {
        const bool is_there = k_begin + stage * KS + ks < k_end;
#pragma unroll
        for (int mt = 0; mt < MT; ++mt)
            load_scaled_fragments(weights + slot * W_STAGE + (mt * KS + ks) * RECORD, table, is_there, fragments[mt]);
    };
    wait_barrier(barriers, 0);
    load_tile(0, 0, 0, a[0]);
    int stage = 0, slot = 0;
    u32 parity = 0;
    do {
        const int next_slot = slot + 1 == STAGES ? 0 : slot + 1;
        wait_barrier(full + slot * 8, parity);
#pragma unroll
        for (int ks = 0; ks < KS; ++ks) {
            const u64 b = rows_descriptor(activations + slot * X_STAGE + ks * X_TILE);
            wgmma_fence();
#pragma unroll
            for (int mt = 0; mt < MT; ++mt)
#pragma unroll
                for (int s = 0; s < 4; ++s) wgmma_bf16(sums[mt], a[ks & 1][mt][s], b + 2 * s);
            wgmma_commit();
            wgmma_wait<1>();  // the tile before is multiplied: its fragments may go, and after a stage its x
            if (ks == 0) {
                if (stage > 0 && lane == 0) arrive_at(empty + (slot == 0 ? STAGES - 1 : slot - 1) * 8);
                fetch_weights(stage + STAGES - 1);
                fetch_x(stage + STAGES - 1);
                __syncwarp();
            }
            if (ks + 1 < KS) {
                load_tile(stage, slot, ks + 1, a[(ks + 1) & 1]);
            } else if (stage + 1 < stages) {
                wait_barrier(barriers + next_slot * 8, next_slot == 0 ? parity ^ 1 : parity);
                load_tile(stage + 1, next_slot, 0, a[0]);
            }
        }
        slot = next_slot;
        if (slot == 0) parity ^= 1;
    } while (++stage < stages);
    wait_for_sums(sums);

    add_parts<4 * WN * MT, 4 * WN * WK>(base, wk, sums, local_tile, [&](int tile, int nt, const float* d) {
        store_outputs(out + static_cast<long long>(at.first_row) * out_stride, out_stride, bias,
                      at.column * (4 * WN * MT) + tile, n, nt, m - at.first_row, d);
    });
}
