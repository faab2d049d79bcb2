// Stands in for kernels/cuda/common.cuh: its primitives on a CPU.
//
// Asynchronous copies are done no earlier than they are waited for, so that a kernel that does not wait reads what was there
// before.
#pragma once
#include "emulated_block.cuh"

inline void allow_next_kernel() {}
inline void wait_for_previous_kernel() { ++emulated.current->waits; }

alignas(1024) static unsigned char shared_base;  // addresses count from here

inline u32 shared_address(const void* pointer) {
    return static_cast<u32>(static_cast<const unsigned char*>(pointer) - &shared_base);
}

inline unsigned char* shared_place(u32 address, int alignment) {
    unsigned char* const place = &shared_base + static_cast<int32_t>(address);
    if (reinterpret_cast<uintptr_t>(place) % alignment != 0) std::fprintf(stderr, "unaligned shared address\n"), std::abort();
    return place;
}

inline uint4& shared16(u32 address) { return *reinterpret_cast<uint4*>(shared_place(address, 16)); }

inline Copy copy_of(u32 to, const void* from, u32 bytes) {
    if (reinterpret_cast<uintptr_t>(from) % 16 != 0 || bytes % 16 != 0) std::fprintf(stderr, "unaligned copy\n"), std::abort();
    const unsigned char* const begin = static_cast<const unsigned char*>(from);
    return {shared_place(to, 16), {begin, begin + bytes}};
}

inline void copy_async(u32 to, const void* from) { emulated.current->copies.push_back(copy_of(to, from, 16)); }

inline void copy_async_or_zero(u32 to, const u16* from, bool is_there) {
    static const uint4 zeros{};
    emulated.current->copies.push_back(copy_of(to, is_there ? static_cast<const void*>(from) : &zeros, 16));
}

inline void commit_copies() {
    emulated.current->groups.push_back(std::move(emulated.current->copies));
    emulated.current->copies.clear();
}

template <int PENDING>
void wait_for_copies() {
    for (auto& groups = emulated.current->groups; groups.size() > PENDING; groups.pop_front())
        for (const Copy& copy : groups.front()) copy.finish();
}

inline CopyBarrier& copy_barrier(u32 address) { return this_block().copy_barriers.at(address); }

inline void init_barrier(u32 barrier, u32 arrivals) {
    this_block().copy_barriers[barrier] = CopyBarrier();
    copy_barrier(barrier).expected = static_cast<int>(arrivals);
    copy_barrier(barrier).place = shared_place(barrier, 8);
}

inline void fence_barrier_init() {}

inline void expect_bytes(u32 barrier, u32 bytes) {
    ++copy_barrier(barrier).come;
    copy_barrier(barrier).bytes_expected += bytes;
    copy_barrier(barrier).settle();
}

inline void copy_to_barrier(Copy copy, u32 barrier) {
    CopyBarrier& of = copy_barrier(barrier);
    of.bytes_come += copy.bytes.size();
    of.coming.push_back(std::move(copy));
    of.settle();
}

inline void copy_bulk(u32 to, const void* from, u32 bytes, u32 barrier) { copy_to_barrier(copy_of(to, from, bytes), barrier); }

inline void wait_barrier(u32 barrier, u32 parity) {
    CopyBarrier& of = copy_barrier(barrier);
    while ((of.times & 1) == parity) pause();
    for (const Copy& copy : of.landed) copy.finish();
    of.landed.clear();
}

template <int THREADS_TOGETHER>
void sync_group(int id) {
    if (THREADS_TOGETHER == 32) return __syncwarp();
    this_block().named_barriers[id].expected = THREADS_TOGETHER;
    meet(this_block().named_barriers[id]);
}

inline uint4 load_shared16(u32 address) { return shared16(address); }
inline float2 load_shared_pair(u32 address) { return *reinterpret_cast<const float2*>(shared_place(address, 8)); }
inline void store_shared16(u32 address, u32 a, u32 b, u32 c, u32 d) { shared16(address) = {a, b, c, d}; }

inline uint4 load_cluster16(u32 address, int rank) {
    const long long from_block = shared_place(address, 16) - this_block().memory;
    return *reinterpret_cast<const uint4*>(emulated.blocks[rank].memory + from_block);
}

inline uint4 load_global16(const u16* from, bool is_there) {
    uint4 v{};
    if (is_there && reinterpret_cast<uintptr_t>(from) % 16 != 0) std::fprintf(stderr, "unaligned load\n"), std::abort();
    if (is_there) std::memcpy(&v, from, 16);
    return v;
}

inline float load_global_float(const float* from, bool is_there) { return is_there ? *from : 0.0f; }

inline float from_bf16(u16 bits) { return __uint_as_float(static_cast<u32>(bits) << 16); }

inline u16 to_bf16(float v) {
    const u32 bits = __float_as_uint(v);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return static_cast<u16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline u32 to_bf16_pair(float low, float high) { return static_cast<u32>(to_bf16(high)) << 16 | to_bf16(low); }

inline u32 multiply_pairs(u32 a, u32 b) {
    auto product = [&](int shift) { return from_bf16(static_cast<u16>(a >> shift)) * from_bf16(static_cast<u16>(b >> shift)); };
    return to_bf16_pair(product(0), product(16));
}

inline uint4 load_matrices(u32 address) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    return together({address, 0, 0, 0}, [&](const uint4* given) {
        auto word = [&](int q) {
            const uint4& row = shared16(given[8 * q + g].x);
            return t == 0 ? row.x : t == 1 ? row.y : t == 2 ? row.z : row.w;
        };
        return uint4{word(0), word(1), word(2), word(3)};
    });
}

inline u32 transpose_8x8(u32 pair) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    return together({pair, 0, 0, 0}, [&](const uint4* given) {
        auto element = [&](int row, int column) { return given[row * 4 + column / 2].x >> (16 * (column & 1)) & 0xffff; };
        return element(2 * t + 1, g) << 16 | element(2 * t, g);
    });
}

// A lane's part of 16 rows of pairs of bf16, as products take them.
inline void give_left(const u32 (&a)[4]) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    for (int i = 0; i < 4; ++i)
        for (int half = 0; half < 2; ++half)
            warp_of_lane().left[g + (i & 1) * 8][2 * t + half + (i >> 1) * 8] = from_bf16(static_cast<u16>(a[i] >> (16 * half)));
}

// d = a · b + d, 16×16 by 16×8
inline void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const auto& left = warp_of_lane().left;
    auto& right = warp_of_lane().right;
    give_left(a);
    for (int half = 0; half < 2; ++half) {
        right[2 * t + half][g] = from_bf16(static_cast<u16>(b0 >> (16 * half)));
        right[2 * t + half + 8][g] = from_bf16(static_cast<u16>(b1 >> (16 * half)));
    }
    __syncwarp();
    for (int i = 0; i < 4; ++i)
        for (int k = 0; k < 16; ++k) d[i] += left[g + (i >> 1) * 8][k] * right[k][2 * t + (i & 1)];
    __syncwarp();
}

// d = a · b + d, 16×32 by 32×8, of bytes
inline void mma_int8(int (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    float(&left)[16][32] = warp_of_lane().left;
    float(&right)[32][8] = warp_of_lane().right;
    auto byte_of = [](u32 word, int i) { return static_cast<float>(static_cast<signed char>(word >> (8 * i))); };
    for (int i = 0; i < 4; ++i)
        for (int byte = 0; byte < 4; ++byte) left[g + (i & 1) * 8][4 * t + byte + (i >> 1) * 16] = byte_of(a[i], byte);
    for (int byte = 0; byte < 4; ++byte) {
        right[4 * t + byte][g] = byte_of(b0, byte);
        right[4 * t + byte + 16][g] = byte_of(b1, byte);
    }
    __syncwarp();
    for (int i = 0; i < 4; ++i)
        for (int k = 0; k < 32; ++k) d[i] += static_cast<int>(left[g + (i >> 1) * 8][k] * right[k][2 * t + (i & 1)]);
    __syncwarp();
}
