// Records of NF4 weights (see nf4_weight.py), and the way from their codes to the fragments of the tensor cores.
#pragma once
#include "common.cuh"
#include "partial_sums.cuh"

#define RECORD 576
#define CODES 512

__constant__ float kTable[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

// Of all factors, the one under which the table rounds to bf16 with the least relative error, 0.0016.
#define TABLE_SCALE 1.1888f

// A table of pairs of codes, with a copy for each bank (or pair of banks): no two lanes of a warp wait for each other.
#if EXACT
typedef float2 Entry;
#define COPIES 16
#else
typedef u32 Entry;
#define COPIES 32
#endif

__device__ __forceinline__ void fill_table(Entry* table, int warp, int warps) {
    const int lane = threadIdx.x & 31;
    for (int pair = warp; pair < 256; pair += warps) {
        const float low = kTable[pair & 15], high = kTable[pair >> 4];
#if EXACT
        if (lane < COPIES) table[pair * COPIES + lane] = make_float2(low, high);
#else
        table[pair * COPIES + lane] = to_bf16_pair(low * TABLE_SCALE, high * TABLE_SCALE);
#endif
    }
}

// The entry of a lane's pair `p` of codes in `word`, as an offset into the table.
__device__ __forceinline__ u32 entry_offset(u32 word, int p, u32 copy) {
    // A pair of codes at bits 7..14 is its entry's offset; the last pair wraps around the word's end.
    const u32 turned = p == 3 ? __funnelshift_l(word, word, 8) : word >> (8 * p);
    return (turned & 0x7F80u) | copy;
}

__device__ __forceinline__ u32 word_of(uint4 words, int s) {
    return s == 0 ? words.x : s == 1 ? words.y : s == 2 ? words.z : words.w;
}

#if EXACT
// A pair of weights, each rounded to bf16 as bitsandbytes does.
__device__ __forceinline__ u32 exact_pair(const unsigned char* entries, u32 offset, float scale) {
    const float2 v = *reinterpret_cast<const float2*>(entries + offset);
    return to_bf16_pair(__fmul_rn(v.x, scale), __fmul_rn(v.y, scale));
}
#endif

// Fragments of one tile for its four steps of 16 inputs. `scale` is that of rows g and g + 8; in the exact mode it is
// already in the fragments.
__device__ __forceinline__ void load_fragments(u32 record, const Entry* table, u32 (&a)[4][4], float2& scale) {
    const int lane = threadIdx.x & 31;
    const unsigned char* const entries = reinterpret_cast<const unsigned char*>(table);
    const u32 copy = (lane % COPIES) * sizeof(Entry);
    const uint4 words = load_shared16(record + lane * 16);
    scale = load_shared_pair(record + CODES + (lane >> 2) * 8);
#pragma unroll
    for (int s = 0; s < 4; ++s)
#pragma unroll
        for (int p = 0; p < 4; ++p) {
            const u32 at = entry_offset(word_of(words, s), p, copy);
#if EXACT
            a[s][p] = exact_pair(entries, at, (p & 1) ? scale.y : scale.x);
#else
            a[s][p] = *reinterpret_cast<const u32*>(entries + at);
#endif
        }
}

// The same with the scales multiplied in: in bf16 where the mode is not exact. All zeros where `is_there` is false.
__device__ __forceinline__ void load_scaled_fragments(u32 record, const Entry* table, bool is_there, u32 (&a)[4][4]) {
    const int lane = threadIdx.x & 31;
    const unsigned char* const entries = reinterpret_cast<const unsigned char*>(table);
    const u32 copy = (lane % COPIES) * sizeof(Entry);
    const uint4 words = load_shared16(record + lane * 16);
    float2 scale = load_shared_pair(record + CODES + (lane >> 2) * 8);
    if (!is_there) scale = make_float2(0.0f, 0.0f);
    const u32 scales[2] = {to_bf16_pair(scale.x, scale.x), to_bf16_pair(scale.y, scale.y)};
#pragma unroll
    for (int s = 0; s < 4; ++s)
#pragma unroll
        for (int p = 0; p < 4; ++p) {
            const u32 at = entry_offset(word_of(words, s), p, copy);
#if EXACT
            a[s][p] = exact_pair(entries, at, (p & 1) ? scale.y : scale.x);
#else
            a[s][p] = multiply_pairs(*reinterpret_cast<const u32*>(entries + at), scales[p & 1]);
#endif
        }
}

__device__ __forceinline__ void add_scaled(float (&sums)[4], const float* d, float2 scale) {
    sums[0] = fmaf(scale.x, d[0], sums[0]);
    sums[1] = fmaf(scale.x, d[1], sums[1]);
    sums[2] = fmaf(scale.y, d[2], sums[2]);
    sums[3] = fmaf(scale.y, d[3], sums[3]);
}

__device__ __forceinline__ void store_outputs(u16* out, int out_stride, const u16* bias, int tile, int n, int nt, int m,
                                              const float* d) {
    const int first = tile * 16, g = (threadIdx.x & 31) >> 2;
    if (first >= n || nt * 8 >= m) return;
    const float unscale = EXACT ? 1.0f : 1.0f / TABLE_SCALE;
    float y[4] = {d[0] * unscale, d[1] * unscale, d[2] * unscale, d[3] * unscale};
    if (bias != nullptr) {
        const float low = first + g < n ? from_bf16(bias[first + g]) : 0.0f;
        const float high = first + 8 + g < n ? from_bf16(bias[first + 8 + g]) : 0.0f;
        y[0] += low, y[1] += low, y[2] += high, y[3] += high;
    }
    store_rows(out, out_stride, first, n, nt, m, make_float2(y[0], y[1]), make_float2(y[2], y[3]));
}
