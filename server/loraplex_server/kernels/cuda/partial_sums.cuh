// Sums over parts of the inputs, held by the warps of a block (WK) and by the blocks of a cluster (SK), added in the
// order of the parts: the result does not depend on how the parts fall to warps and blocks.
#pragma once
#include "common.cuh"

#if SK > 1
#define CLUSTER __cluster_dims__(1, SK, 1)
__device__ __forceinline__ int cluster_rank() { return blockIdx.y; }  // a cluster is one column of the grid
#else
#define CLUSTER
__device__ __forceinline__ int cluster_rank() { return 0; }
#endif

// Bytes that the sums of a block's parts take, from the start of its dynamic shared memory on. Its barriers lie behind
// them: an arrival at a barrier may be on its way yet when the sums are stored.
__device__ __forceinline__ constexpr int sum_bytes(int tiles) { return SK * WK > 1 ? WK * tiles * NT * 512 : 0; }

__device__ __forceinline__ void sync_parts() {
#if SK > 1
    sync_cluster();
#else
    __syncthreads();
#endif
}

__device__ __forceinline__ uint4 load_part(u32 address, int rank) {
#if SK > 1
    return load_cluster16(address, rank);
#else
    return load_shared16(address);
#endif
}

__device__ __forceinline__ u32 bits(float v) { return __float_as_uint(v); }
__device__ __forceinline__ u32 bits(int v) { return static_cast<u32>(v); }
__device__ __forceinline__ void add_bits(float& sum, u32 v) { sum += __uint_as_float(v); }
__device__ __forceinline__ void add_bits(int& sum, u32 v) { sum += static_cast<int>(v); }

// `sums` of this warp: MT tiles of 16 outputs × NT tiles of 8 rows, of the part wk of this block. TILES tiles of
// outputs belong to the block; `local_tile(mt)` says which of them mt is. `store(tile, nt, d)` takes each complete sum,
// on one warp of the cluster. The shared memory from `base` on is free once every thread is here.
template <int TILES, int WARPS, typename Value, typename LocalTile, typename Store>
__device__ __forceinline__ void add_parts(u32 base, int wk, Value (&sums)[MT][NT][4], LocalTile local_tile, Store store) {
    if constexpr (SK * WK == 1) {
#pragma unroll
        for (int mt = 0; mt < MT; ++mt)
#pragma unroll
            for (int nt = 0; nt < NT; ++nt) store(local_tile(mt), nt, sums[mt][nt]);
        return;
    }
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    wait_for_copies<0>();
    __syncthreads();
#pragma unroll
    for (int mt = 0; mt < MT; ++mt)
#pragma unroll
        for (int nt = 0; nt < NT; ++nt) {
            const Value* d = sums[mt][nt];
            store_shared16(base + ((wk * TILES + local_tile(mt)) * NT + nt) * 512 + lane * 16, bits(d[0]), bits(d[1]),
                           bits(d[2]), bits(d[3]));
        }
    sync_parts();
    for (int unit = cluster_rank() * WARPS + warp; unit < TILES * NT; unit += SK * WARPS) {
        Value d[4] = {0, 0, 0, 0};
#pragma unroll
        for (int part = 0; part < SK * WK; ++part) {
            const uint4 v = load_part(base + ((part % WK) * TILES * NT + unit) * 512 + lane * 16, part / WK);
            add_bits(d[0], v.x);
            add_bits(d[1], v.y);
            add_bits(d[2], v.z);
            add_bits(d[3], v.w);
        }
        store(unit / NT, unit % NT, d);
    }
    if constexpr (SK > 1) sync_parts();  // a block's sums are there until everyone has read them
}

// d of 16 outputs from `first` on × rows 8 · nt.., as two pairs of bf16 per lane: y0 of output g, y1 of output g + 8.
__device__ __forceinline__ void store_rows(u16* out, int out_stride, int first, int n, int nt, int m, float2 y0, float2 y1) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, row = nt * 8 + g;
    const u32 low = transpose_8x8(to_bf16_pair(y0.x, y0.y));
    const u32 high = transpose_8x8(to_bf16_pair(y1.x, y1.y));
    if (row < m) {
        u16* const line = out + (long long)row * out_stride + first + 2 * t;
        if (first + 2 * t < n) *reinterpret_cast<u32*>(line) = low;
        if (first + 8 + 2 * t < n) *reinterpret_cast<u32*>(line + 8) = high;
    }
}
