// Stands in for kernels/cuda/wgmma.cuh. A product is done no earlier than it is waited for, with what its operands hold then.
#pragma once
#include "common.cuh"
#include "tma.cuh"

inline void wgmma_fence() {}

inline void wgmma_commit() {
    emulated.current->product_groups.push_back(std::move(emulated.current->products));
    emulated.current->products.clear();
}

template <int PENDING>
void wgmma_wait() {
    for (auto& groups = emulated.current->product_groups; groups.size() > PENDING; groups.pop_front())
        for (const auto& product : groups.front()) product();
}

template <typename Sum>
void wait_for_sums(Sum (&)[MT][NT][4]) {
    wgmma_wait<0>();
}

inline u64 rows_descriptor(u32 address) { return address >> 4; }

// Byte `byte` of row `row`, from a descriptor's place on.
inline const unsigned char* byte_of_rows(u64 descriptor, int row, int byte) {
    return shared_place(swizzled((static_cast<u32>(descriptor) << 4) + row * 128 + byte), 1);
}

inline void wgmma_bf16(float (&d)[NT][4], const u32 (&a)[4], u64 b) {
    emulated.current->products.push_back([&d, &a, b] {
        const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
        give_left(a);
        __syncwarp();
        for (int nt = 0; nt < NT; ++nt)
            for (int i = 0; i < 4; ++i)
                for (int k = 0; k < 16; ++k) {
                    u16 right;
                    std::memcpy(&right, byte_of_rows(b, nt * 8 + 2 * t + (i & 1), 2 * k), 2);
                    d[nt][i] += warp_of_lane().left[g + (i >> 1) * 8][k] * from_bf16(right);
                }
        __syncwarp();
    });
}

inline void wgmma_int8(int (&d)[NT][4], u64 a, u64 b) {
    emulated.current->products.push_back([&d, a, b] {
        const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, first = (threadIdx.x / 32 & 3) * 16;
        for (int nt = 0; nt < NT; ++nt)
            for (int i = 0; i < 4; ++i)
                for (int k = 0; k < 32; ++k)
                    d[nt][i] += static_cast<signed char>(*byte_of_rows(a, first + g + (i >> 1) * 8, k)) *
                                static_cast<signed char>(*byte_of_rows(b, nt * 8 + 2 * t + (i & 1), k));
    });
}
