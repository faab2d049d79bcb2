// Product of int8 activations with an int8 weight, read once: y [m, N] = (x [m, K] · Wᵀ) · x_scale[m] · w_scale[N],
// m ≤ 8 · NT rows, summed in int32: exact, so a row's result depends on nothing but the row.
//
// The weight is row-major [N, K]. A block of WN × WK warps owns 16 · MT · WN outputs; the blocks of a cluster
// (SK) and the warps along WK share the inputs out. A lane copies the 16-byte pieces that it itself multiplies; a tile's 64
// inputs are taken in the order in which the pieces lie.
//
// Compile-time: NT, MT, WN, WK, SK, KS (tiles of 64 inputs per stage), STAGES, XR (rows of x held per stage), MINB.
#include "int8.cuh"

#define GROUP (WN * 32)
#define THREADS (WK * GROUP)
#define X_STAGE (XR * KS * 64)
#define W_STAGE (MT * KS * 1024)

extern "C" __global__ void CLUSTER __launch_bounds__(THREADS, MINB) int8_product(
    const signed char* __restrict__ weight, const float* __restrict__ weight_scale, const signed char* __restrict__ x,
    const float* __restrict__ x_scale, const u16* __restrict__ bias, u16* __restrict__ out, int m, int n, int k_tiles,
    int out_stride) {
    extern __shared__ __align__(128) unsigned char dynamic_shared[];
    allow_next_kernel();

    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int wk = warp / WN, wn = warp % WN, in_group = threadIdx.x - wk * GROUP;
    const int g = lane >> 2, t = lane & 3;
    const int first_row = (blockIdx.x * WN + wn) * MT * 16;
    const int part = cluster_rank() * WK + wk;
    const int k_begin = part * k_tiles / (SK * WK), k_end = (part + 1) * k_tiles / (SK * WK);
    const int stages = (k_end - k_begin + KS - 1) / KS;
    const long long row_bytes = (long long)k_tiles * 64;

    const u32 base = shared_address(dynamic_shared);
    const u32 weights = base + warp * (STAGES * W_STAGE) + lane * 16;
    const u32 activations = base + WK * WN * STAGES * W_STAGE + wk * (STAGES * X_STAGE);

    auto fetch_weights = [&](int stage) {
        if (stage < stages) {
            const u32 to = weights + (stage % STAGES) * W_STAGE;
            const int k = k_begin + stage * KS;
#pragma unroll
            for (int mt = 0; mt < MT; ++mt)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int row = min(first_row + mt * 16 + half * 8 + g, n - 1);
                    const signed char* const from = weight + row * row_bytes + (long long)k * 64 + t * 16;
#pragma unroll
                    for (int ks = 0; ks < KS; ++ks)
                        if (k + ks < k_end) copy_async(to + ((mt * 2 + half) * KS + ks) * 512, from + ks * 64);
                }
        }
    };
    // Two rows that a quarter of a warp reads together must not share banks.
    auto place = [](int row, int piece) { return KS == 1 ? piece : piece ^ ((row & 1) << 2); };
    auto fetch_x = [&](int stage) {
        if (stage < stages) {
            const u32 to = activations + (stage % STAGES) * X_STAGE;
            const int k = k_begin + stage * KS;
#pragma unroll
            for (int i = 0; i < (XR * KS * 4 + GROUP - 1) / GROUP; ++i) {
                const int chunk = i * GROUP + in_group, row = chunk / (KS * 4), piece = chunk % (KS * 4);
                if (row < XR && row < m && k + (piece >> 2) < k_end)
                    copy_async(to + row * (KS * 64) + (place(row, piece) << 4), x + row * row_bytes + k * 64 + piece * 16);
            }
        }
        commit_copies();
    };

    for (int s = 0; s < STAGES - 1; ++s) fetch_weights(s);
    wait_for_previous_kernel();
    for (int s = 0; s < STAGES - 1; ++s) fetch_x(s);
    __syncthreads();

    int sums[MT][NT][4];
#pragma unroll
    for (int mt = 0; mt < MT; ++mt)
#pragma unroll
        for (int nt = 0; nt < NT; ++nt)
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[mt][nt][i] = 0;

    int slot = 0;
    for (int stage = 0; stage < stages; ++stage) {
        wait_for_copies<STAGES - 2>();
        sync_group<GROUP>(1 + wk);
        fetch_weights(stage + STAGES - 1);
        fetch_x(stage + STAGES - 1);
        const int tiles = min(KS, k_end - (k_begin + stage * KS));
#pragma unroll
        for (int ks = 0; ks < KS; ++ks) {
            if (ks < tiles) {
                u32 a[MT][2][4];
#pragma unroll
                for (int mt = 0; mt < MT; ++mt) {
                    const u32 at = weights + slot * W_STAGE + (mt * 2 * KS + ks) * 512;
                    const uint4 upper = load_shared16(at), lower = load_shared16(at + KS * 512);
                    a[mt][0][0] = upper.x, a[mt][0][1] = lower.x, a[mt][0][2] = upper.y, a[mt][0][3] = lower.y;
                    a[mt][1][0] = upper.z, a[mt][1][1] = lower.z, a[mt][1][2] = upper.w, a[mt][1][3] = lower.w;
                }
#pragma unroll
                for (int nt = 0; nt < NT; ++nt) {
                    const int row = XR < 8 ? g % XR : nt * 8 + g;
                    const uint4 b = load_shared16(activations + slot * X_STAGE + row * (KS * 64) +
                                                  (place(row, ks * 4 + t) << 4));
#pragma unroll
                    for (int mt = 0; mt < MT; ++mt) {
                        mma_int8(sums[mt][nt], a[mt][0], b.x, b.y);
                        mma_int8(sums[mt][nt], a[mt][1], b.z, b.w);
                    }
                }
            }
        }
        if (++slot == STAGES) slot = 0;
    }

    add_parts<WN * MT, WN * WK>(
        base, wk, sums, [&](int mt) { return wn * MT + mt; },
        [&](int tile, int nt, const int* d) {
            store_outputs(out, out_stride, weight_scale, x_scale, bias, blockIdx.x * (WN * MT) + tile, n,
                          nt, m, d);
        });
}
