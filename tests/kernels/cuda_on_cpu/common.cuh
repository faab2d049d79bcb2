// Stands in for kernels/cuda/common.cuh: the primitives on a CPU, for one block after another.
//
// A thread of a block is a coroutine. What a warp does together (products, shuffles, barriers) waits until all of its lanes
// have come. Shared memory is static, and what one block leaves there the next one finds.
#pragma once
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
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
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int min(int a, int b) { return a < b ? a : b; }

// ---- a block

struct Index { int x, y, z; };

struct Barrier {
    int expected = 0, come = 0;
    long long times = 0;
};

struct Lane {
    Index index;
    ucontext_t context;
    std::unique_ptr<unsigned char[]> stack;
    bool is_done = false;
};

struct Warp {
    Barrier barrier;
    uint4 given[32];  // what each lane brings to a common operation
    float left[16][16], right[16][8];  // ... to a product
};

struct Block {
    std::vector<Lane> lanes;
    std::vector<Warp> warps;
    Barrier barrier;
    bool is_any = false;
    Lane* current = nullptr;
    ucontext_t scheduler;
    std::function<void()> body;
};

inline Block emulated;
inline Index blockIdx, gridDim;
#define threadIdx (emulated.current->index)

inline void pause() { swapcontext(&emulated.current->context, &emulated.scheduler); }

inline void meet(Barrier& barrier) {
    const long long times = barrier.times;
    if (++barrier.come == barrier.expected) {
        barrier.come = 0;
        ++barrier.times;
        return;
    }
    while (barrier.times == times) pause();
}

inline Warp& warp_of_lane() { return emulated.warps[threadIdx.x / 32]; }

inline void __syncwarp() { meet(warp_of_lane().barrier); }
inline void __syncthreads() { meet(emulated.barrier); }
inline void __threadfence() {}  // blocks run one after another

inline bool __syncthreads_or(bool is_true) {
    __syncthreads();
    emulated.is_any = false;
    __syncthreads();
    emulated.is_any |= is_true;
    __syncthreads();
    return emulated.is_any;
}

inline int atomicAdd(int* place, int value) {
    const int before = *place;
    *place += value;
    return before;
}

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

inline void run_lane() {
    emulated.body();
    emulated.current->is_done = true;
    pause();
}

inline void run_block(int threads, const std::function<void()>& body) {
    emulated.lanes = std::vector<Lane>(threads);
    emulated.warps = std::vector<Warp>(threads / 32);
    emulated.barrier = {threads, 0, 0};
    emulated.body = body;
    for (Warp& warp : emulated.warps) warp.barrier.expected = 32;
    for (int i = 0; i < threads; ++i) {
        Lane& lane = emulated.lanes[i];
        lane.index = {i, 0, 0};
        lane.stack = std::make_unique<unsigned char[]>(1 << 16);
        getcontext(&lane.context);
        lane.context.uc_stack.ss_sp = lane.stack.get();
        lane.context.uc_stack.ss_size = 1 << 16;
        makecontext(&lane.context, run_lane, 0);
    }
    for (bool is_running = true; is_running;) {
        is_running = false;
        for (Lane& lane : emulated.lanes) {
            if (lane.is_done) continue;
            is_running = true;
            emulated.current = &lane;
            swapcontext(&emulated.scheduler, &lane.context);
        }
    }
}

// ---- what the kernels take from common.cuh

inline void allow_next_kernel() {}
inline void wait_for_previous_kernel() {}

static unsigned char shared_base;  // addresses count from here

inline u32 shared_address(const void* pointer) {
    return static_cast<u32>(static_cast<const unsigned char*>(pointer) - &shared_base);
}

inline const uint4& shared16(u32 address) {
    const unsigned char* const place = &shared_base + static_cast<int32_t>(address);
    if (reinterpret_cast<uintptr_t>(place) % 16 != 0) std::fprintf(stderr, "unaligned shared address\n"), std::abort();
    return *reinterpret_cast<const uint4*>(place);
}

inline uint4 load_global16(const u16* from, bool is_there) {
    uint4 v{};
    if (is_there && reinterpret_cast<uintptr_t>(from) % 16 != 0) std::fprintf(stderr, "unaligned load\n"), std::abort();
    if (is_there) std::memcpy(&v, from, 16);
    return v;
}

inline float load_global_float(const float* from) { return *from; }
inline u16 load_global_half(const u16* from, bool is_there) { return is_there ? *from : 0; }

inline float from_bf16(u16 bits) {
    const u32 wide = static_cast<u32>(bits) << 16;
    float v;
    std::memcpy(&v, &wide, 4);
    return v;
}

inline u16 to_bf16(float v) {
    u32 bits;
    std::memcpy(&bits, &v, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return static_cast<u16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline u32 to_bf16_pair(float low, float high) { return static_cast<u32>(to_bf16(high)) << 16 | to_bf16(low); }

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

// d = a · b + d, 16×16 by 16×8
inline void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    float(&left)[16][16] = warp_of_lane().left;
    float(&right)[16][8] = warp_of_lane().right;
    for (int i = 0; i < 4; ++i)
        for (int half = 0; half < 2; ++half)
            left[g + (i & 1) * 8][2 * t + half + (i >> 1) * 8] = from_bf16(static_cast<u16>(a[i] >> (16 * half)));
    for (int half = 0; half < 2; ++half) {
        right[2 * t + half][g] = from_bf16(static_cast<u16>(b0 >> (16 * half)));
        right[2 * t + half + 8][g] = from_bf16(static_cast<u16>(b1 >> (16 * half)));
    }
    __syncwarp();
    for (int i = 0; i < 4; ++i)
        for (int k = 0; k < 16; ++k) d[i] += left[g + (i >> 1) * 8][k] * right[k][2 * t + (i & 1)];
    __syncwarp();
}
