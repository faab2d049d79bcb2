// Stands in for kernels/cuda/common.cuh: the primitives on a CPU, for one block after another.
//
// A thread of a block is a coroutine. What a warp does together (products, shuffles, barriers) waits until all of its lanes
// have come. Asynchronous copies are done no earlier than they are waited for, so that a kernel that does not wait reads
// what was there before. Shared memory is poisoned before each block.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static

typedef uint32_t u32;
typedef unsigned long long u64;
typedef uint16_t u16;

struct int2 { int x, y; };
struct int4 { int x, y, z, w; };
struct alignas(16) uint4 { u32 x, y, z, w; };
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline int __popc(u32 v) { return __builtin_popcount(v); }
inline float __frcp_rn(float v) { return 1.0f / v; }
inline int __float2int_rd(float v) { return static_cast<int>(std::floor(v)); }
inline u32 __float_as_uint(float v) { u32 bits; std::memcpy(&bits, &v, 4); return bits; }
inline float __uint_as_float(u32 bits) { float v; std::memcpy(&v, &bits, 4); return v; }
inline u32 __byte_perm(u32 a, u32 b, u32 selector) {
    const u64 bytes = static_cast<u64>(b) << 32 | a;
    u32 out = 0;
    for (int i = 0; i < 4; ++i) out |= static_cast<u32>(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
    return out;
}

// ---- a block

struct Index { int x, y, z; };

struct Copy { unsigned char* to; uint4 bytes; };

struct Barrier {
    int expected = 0, come = 0;
    long long times = 0;
};

struct Lane {
    Index index;
    ucontext_t context;
    std::unique_ptr<unsigned char[]> stack;
    std::vector<Copy> copies;              // not yet committed
    std::deque<std::vector<Copy>> groups;  // committed, not yet done
    bool is_done = false;
};

struct Warp {
    Barrier barrier;
    uint4 given[32];  // what each lane brings to a common operation
};

struct Block {
    std::vector<Lane> lanes;
    std::vector<Warp> warps;
    Barrier barrier;
    Lane* current = nullptr;
    ucontext_t scheduler;
    std::function<void()> body;
};

inline Block block;
inline Index blockIdx, gridDim;
inline unsigned char* dynamic_shared_memory;
#define threadIdx (block.current->index)

inline void pause() { swapcontext(&block.current->context, &block.scheduler); }

inline void meet(Barrier& barrier) {
    const long long times = barrier.times;
    if (++barrier.come == barrier.expected) {
        barrier.come = 0;
        ++barrier.times;
        return;
    }
    while (barrier.times == times) pause();
}

inline Warp& warp_of_lane() { return block.warps[threadIdx.x / 32]; }

inline void __syncwarp() { meet(warp_of_lane().barrier); }
inline void __syncthreads() { meet(block.barrier); }

// All lanes give something and see what the others gave.
template <class Of>
auto together(const uint4& given, const Of& of) {
    Warp& warp = warp_of_lane();
    warp.given[threadIdx.x & 31] = given;
    __syncwarp();
    auto result = of(warp.given);
    __syncwarp();
    return result;
}

inline int __shfl_up_sync(u32, int value, int distance) {
    const int lane = threadIdx.x & 31;
    return together({static_cast<u32>(value), 0, 0, 0},
                    [&](const uint4* given) { return static_cast<int>(given[lane >= distance ? lane - distance : lane].x); });
}

inline u32 __ballot_sync(u32, bool is_true) {
    return together({is_true, 0, 0, 0}, [](const uint4* given) {
        u32 all = 0;
        for (int i = 0; i < 32; ++i) all |= given[i].x << i;
        return all;
    });
}

inline void run_lane() {
    block.body();
    block.current->is_done = true;
    pause();
}

inline void run_block(int threads, const std::function<void()>& body) {
    block.lanes = std::vector<Lane>(threads);
    block.warps = std::vector<Warp>(threads / 32);
    block.barrier = {threads, 0, 0};
    block.body = body;
    for (Warp& warp : block.warps) warp.barrier.expected = 32;
    for (int i = 0; i < threads; ++i) {
        Lane& lane = block.lanes[i];
        lane.index = {i, 0, 0};
        lane.stack = std::make_unique<unsigned char[]>(1 << 16);
        getcontext(&lane.context);
        lane.context.uc_stack.ss_sp = lane.stack.get();
        lane.context.uc_stack.ss_size = 1 << 16;
        makecontext(&lane.context, run_lane, 0);
    }
    for (bool is_running = true; is_running;) {
        is_running = false;
        for (Lane& lane : block.lanes) {
            if (lane.is_done) continue;
            is_running = true;
            block.current = &lane;
            swapcontext(&block.scheduler, &lane.context);
        }
    }
}

// ---- what the kernels take from common.cuh

inline void allow_next_kernel() {}
inline void wait_for_previous_kernel() {}

inline u32 shared_address(const void* pointer) {
    return static_cast<u32>(static_cast<const unsigned char*>(pointer) - dynamic_shared_memory);
}

inline uint4& shared16(u32 address) {
    if (address % 16 != 0) std::fprintf(stderr, "unaligned shared address %u\n", address), std::abort();
    return *reinterpret_cast<uint4*>(dynamic_shared_memory + address);
}

inline void copy_async_or_zero(u32 to, const u16* from, bool is_there) {
    uint4 bytes{};
    if (is_there && reinterpret_cast<uintptr_t>(from) % 16 != 0) std::fprintf(stderr, "unaligned copy\n"), std::abort();
    if (is_there) std::memcpy(&bytes, from, 16);
    block.current->copies.push_back({reinterpret_cast<unsigned char*>(&shared16(to)), bytes});
}

inline void commit_copies() {
    block.current->groups.push_back(std::move(block.current->copies));
    block.current->copies.clear();
}

template <int PENDING>
void wait_for_copies() {
    while (block.current->groups.size() > PENDING) {
        for (const Copy& copy : block.current->groups.front()) std::memcpy(copy.to, &copy.bytes, 16);
        block.current->groups.pop_front();
    }
}

inline uint4 load_shared16(u32 address) { return shared16(address); }
inline float load_global_float(const float* from, bool is_there) { return is_there ? *from : 0.0f; }

inline float from_bf16(u16 bits) { return __uint_as_float(static_cast<u32>(bits) << 16); }

inline u16 to_bf16(float v) {
    const u32 bits = __float_as_uint(v);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return static_cast<u16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline u32 to_bf16_pair(float low, float high) { return static_cast<u32>(to_bf16(high)) << 16 | to_bf16(low); }

inline u16 half_of(const uint4& v, int index) {
    const u32 word = index < 2 ? v.x : index < 4 ? v.y : index < 6 ? v.z : v.w;
    return static_cast<u16>(word >> (16 * (index & 1)));
}

inline uint4 load_matrices_transposed(u32 address) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    return together({address, 0, 0, 0}, [&](const uint4* given) {
        u32 out[4];
        for (int q = 0; q < 4; ++q) {
            const u16 low = half_of(shared16(given[8 * q + 2 * t].x), g), high = half_of(shared16(given[8 * q + 2 * t + 1].x), g);
            out[q] = static_cast<u32>(high) << 16 | low;
        }
        return uint4{out[0], out[1], out[2], out[3]};
    });
}

inline u32 transpose_8x8(u32 pair) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    return together({pair, 0, 0, 0}, [&](const uint4* given) {
        auto element = [&](int row, int column) { return given[row * 4 + column / 2].x >> (16 * (column & 1)) & 0xffff; };
        return element(2 * t + 1, g) << 16 | element(2 * t, g);
    });
}

// d = a · b + d, 16×16 by 16×8
inline void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    Warp& warp = warp_of_lane();
    const uint4 a_of = {a[0], a[1], a[2], a[3]};
    static float rows[64][16][16], columns[64][16][8];  // of each warp
    float(&left)[16][16] = rows[threadIdx.x / 32];
    float(&right)[16][8] = columns[threadIdx.x / 32];
    (void)warp;
    for (int i = 0; i < 8; ++i) left[g + (i >> 1 & 1) * 8][2 * t + (i & 1) + (i >> 2) * 8] = from_bf16(half_of(a_of, i));
    for (int i = 0; i < 2; ++i) {
        right[2 * t + i][g] = from_bf16(static_cast<u16>(b0 >> (16 * i)));
        right[2 * t + i + 8][g] = from_bf16(static_cast<u16>(b1 >> (16 * i)));
    }
    __syncwarp();
    for (int i = 0; i < 4; ++i)
        for (int k = 0; k < 16; ++k) d[i] += left[g + (i >> 1) * 8][k] * right[k][2 * t + (i & 1)];
    __syncwarp();
}
