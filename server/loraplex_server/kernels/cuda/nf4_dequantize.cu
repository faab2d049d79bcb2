// The very bf16 weights that bitsandbytes makes of an NF4 weight: out [n, 64 · k_tiles]. One warp a tile.
#define EXACT 1
#define SK 1
#define WK 1
#define MT 1
#define NT 1
#include "nf4.cuh"

extern "C" __global__ void __launch_bounds__(256) nf4_dequantize(
    const unsigned char* __restrict__ records, u16* __restrict__ out, int n, int k_tiles) {
    __shared__ float values[16];
    allow_next_kernel();
    if (threadIdx.x < 16) values[threadIdx.x] = kTable[threadIdx.x];
    __syncthreads();
    wait_for_previous_kernel();
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const long long tiles = (long long)((n + 15) >> 4) * k_tiles;
    const long long tile = (long long)blockIdx.x * 8 + (threadIdx.x >> 5);
    if (tile >= tiles) return;
    const uint4 words = *reinterpret_cast<const uint4*>(records + tile * RECORD + lane * 16);
    const float2 scale = *reinterpret_cast<const float2*>(records + tile * RECORD + CODES + g * 8);
    const int first = static_cast<int>(tile / k_tiles) * 16, k = static_cast<int>(tile % k_tiles) * 64;
    const u32 plain[4] = {__funnelshift_r(words.x, words.x, 7), __funnelshift_r(words.y, words.y, 7),
                          __funnelshift_r(words.z, words.z, 7), __funnelshift_r(words.w, words.w, 7)};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = first + g + 8 * half;
        const float by = half ? scale.y : scale.x;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            u32 v[4];  // inputs 32j + 8i + 2t and the next
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const u32 codes = plain[2 * j + (i >> 1)] >> (8 * (2 * (i & 1) + half));
                v[i] = to_bf16_pair(__fmul_rn(values[codes & 15], by), __fmul_rn(values[codes >> 4 & 15], by));
            }
            // Transpose over the four lanes of a row: each then holds 8 inputs in a row.
            u32 p = __shfl_xor_sync(~0u, t & 1 ? v[0] : v[1], 1), q = __shfl_xor_sync(~0u, t & 1 ? v[2] : v[3], 1);
            (t & 1 ? v[0] : v[1]) = p;
            (t & 1 ? v[2] : v[3]) = q;
            p = __shfl_xor_sync(~0u, t & 2 ? v[0] : v[2], 2), q = __shfl_xor_sync(~0u, t & 2 ? v[1] : v[3], 2);
            (t & 2 ? v[0] : v[2]) = p;
            (t & 2 ? v[1] : v[3]) = q;
            if (row < n)
                *reinterpret_cast<uint4*>(out + (long long)row * k_tiles * 64 + k + 32 * j + 8 * t) =
                    make_uint4(v[0], v[1], v[2], v[3]);
        }
    }
}
