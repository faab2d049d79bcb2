// What the int8 products share: from integer sums to outputs.
#pragma once
#include "partial_sums.cuh"

__device__ __forceinline__ void store_outputs(u16* out, int out_stride, const float* weight_scale, const float* x_scale,
                                              const u16* bias, int tile, int n, int nt, int m, const int* d) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, first = tile * 16, row = nt * 8 + 2 * t;
    if (first >= n || nt * 8 >= m) return;
    float2 scale = make_float2(0.0f, 0.0f), b = make_float2(0.0f, 0.0f);
    if (first + g < n) scale.x = weight_scale[first + g];
    if (first + 8 + g < n) scale.y = weight_scale[first + 8 + g];
    if (bias != nullptr) {
        if (first + g < n) b.x = from_bf16(bias[first + g]);
        if (first + 8 + g < n) b.y = from_bf16(bias[first + 8 + g]);
    }
    const float x0 = row < m ? x_scale[row] : 0.0f, x1 = row + 1 < m ? x_scale[row + 1] : 0.0f;
    auto scaled = [](int sum, float by, float plus) { return fmaf(static_cast<float>(sum), by, plus); };
    float y[4] = {scaled(d[0], x0 * scale.x, b.x), scaled(d[1], x1 * scale.x, b.x), scaled(d[2], x0 * scale.y, b.y),
                  scaled(d[3], x1 * scale.y, b.y)};
    store_rows(out, out_stride, first, n, nt, m, make_float2(y[0], y[1]), make_float2(y[2], y[3]));
}
