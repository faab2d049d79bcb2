// Clusters of blocks of threads on a CPU, one cluster after another, and the language's own types and functions.
//
// A thread is a coroutine. What a warp does together (products, shuffles, barriers) waits until all of its lanes have come;
// which warps go on in a round is drawn, so that some run ahead of others. Static shared memory is that of all blocks and
// holds what others left there, dynamic memory is poisoned before each cluster.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static
#define __constant__ static const
#define __grid_constant__
#define __cluster_dims__(...)

typedef uint32_t u32;
typedef unsigned long long u64;
typedef uint16_t u16;

struct int2 { int x, y; };
struct float2 { float x, y; };
struct int4 { int x, y, z, w; };
struct alignas(16) uint4 { u32 x, y, z, w; };
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline int __popc(u32 v) { return __builtin_popcount(v); }
inline float __frcp_rn(float v) { return 1.0f / v; }
inline int __float2int_rd(float v) { return static_cast<int>(std::floor(v)); }

inline float2 make_float2(float x, float y) { return {x, y}; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline u32 __funnelshift_l(u32 low, u32 high, int by) { return static_cast<u32>((static_cast<u64>(high) << 32 | low) << by >> 32); }
inline u32 __funnelshift_r(u32 low, u32 high, int by) { return static_cast<u32>((static_cast<u64>(high) << 32 | low) >> by); }
inline float __fmul_rn(float a, float b) { return a * b; }

inline u32 __float_as_uint(float v) {
    u32 bits;
    std::memcpy(&bits, &v, 4);
    return bits;
}

inline float __uint_as_float(u32 bits) {
    float v;
    std::memcpy(&v, &bits, 4);
    return v;
}

// ---- a block

struct Index { int x, y, z; };

struct Barrier {
    int expected = 0, come = 0;
    long long times = 0;
};

struct Copy {
    unsigned char* to;
    std::vector<unsigned char> bytes;

    void finish() const { std::memcpy(to, bytes.data(), bytes.size()); }
};

// Of asynchronous copies: what it waits for, and those that have come but have not been waited for.
struct CopyBarrier {
    int expected = 0, come = 0;
    const unsigned char* place = nullptr;  // 8 bytes of shared memory that nothing else may write
    u64 bytes_expected = 0, bytes_come = 0, times = 0;
    std::vector<Copy> coming, landed;

    void settle();
};

struct Block;

struct Lane {
    Index index;
    Block* block;
    ucontext_t context;
    std::unique_ptr<unsigned char[]> stack;
    std::vector<Copy> copies;              // not yet committed
    std::deque<std::vector<Copy>> groups;  // committed, not yet done
    std::vector<std::function<void()>> products;
    std::deque<std::vector<std::function<void()>>> product_groups;
    int waits = 0;  // for the previous kernel
    bool is_done = false;
};

struct Warp {
    Barrier barrier;
    uint4 given[32];  // what each lane brings to a common operation
    float left[16][32], right[32][8];  // ... to a product
};

struct Block {
    Index index;
    std::vector<Lane> lanes;
    std::vector<Warp> warps;
    Barrier barrier;
    std::map<int, Barrier> named_barriers;
    std::map<u32, CopyBarrier> copy_barriers;  // by address
    bool is_any = false;
    unsigned char* memory;  // dynamic shared
};

#define MAX_CLUSTER 4
#define BLOCK_MEMORY (227 * 1024)

struct Cluster {
    std::vector<Block> blocks;
    Barrier barrier;
    Lane* current = nullptr;
    ucontext_t scheduler;
    std::function<void()> body;
    u64 progress = 0;  // how often anybody has come, or gone on
    bool waits_are_right = true;
};

// How a cluster ended.
enum Ending { AS_IT_SHOULD, WAITING_FOR_ONE_ANOTHER, WITHOUT_ONE_WAIT, BEYOND_ITS_MEMORY, OVER_A_BARRIER };

inline Cluster emulated;
inline Index gridDim;
inline unsigned char shared_memories[MAX_CLUSTER][BLOCK_MEMORY] __attribute__((aligned(1024)));
#define threadIdx (emulated.current->index)
#define blockIdx (emulated.current->block->index)
#define dynamic_shared_memory (emulated.current->block->memory)

inline void pause() { swapcontext(&emulated.current->context, &emulated.scheduler); }

inline void meet(Barrier& barrier) {
    const long long times = barrier.times;
    ++emulated.progress;
    if (++barrier.come == barrier.expected) {
        barrier.come = 0;
        ++barrier.times;
        return;
    }
    while (barrier.times == times) pause();
}

inline void CopyBarrier::settle() {
    ++emulated.progress;
    if (come < expected || bytes_come < bytes_expected) return;
    for (Copy& copy : coming) landed.push_back(std::move(copy));
    coming.clear();
    come = 0, bytes_expected = bytes_come = 0;
    ++times;
}

inline Block& this_block() { return *emulated.current->block; }
inline Warp& warp_of_lane() { return this_block().warps[threadIdx.x / 32]; }

inline void __syncwarp() { meet(warp_of_lane().barrier); }
inline void __syncthreads() { meet(this_block().barrier); }
inline void sync_cluster() { meet(emulated.barrier); }
inline void __threadfence() {}  // blocks run one after another

inline bool __syncthreads_or(bool is_true) {
    __syncthreads();
    this_block().is_any = false;
    __syncthreads();
    this_block().is_any |= is_true;
    __syncthreads();
    return this_block().is_any;
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

template <class Value>
Value __shfl_xor_sync(u32, Value value, int mask) {
    static_assert(sizeof(Value) == 4, "words");
    u32 word;
    std::memcpy(&word, &value, 4);
    word = together({word, 0, 0, 0}, [&](const uint4* given) { return given[(threadIdx.x & 31) ^ mask].x; });
    std::memcpy(&value, &word, 4);
    return value;
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
    emulated.body();
    emulated.waits_are_right &= emulated.current->waits == 1;
    emulated.current->is_done = true;
    ++emulated.progress;
    pause();
}

// `shared_bytes`: dynamic memory of a block; `overlaps`: each thread must wait once for the previous kernel.
inline Ending run_cluster(const std::vector<Index>& indices, int threads, int shared_bytes, bool overlaps,
                          const std::function<void()>& body) {
    if (indices.size() > MAX_CLUSTER) std::fprintf(stderr, "a cluster of over %d blocks\n", MAX_CLUSTER), std::abort();
    emulated.blocks = std::vector<Block>(indices.size());
    emulated.barrier = {static_cast<int>(indices.size()) * threads, 0, 0};
    emulated.body = body;
    emulated.waits_are_right = true;
    std::memset(shared_memories, 0xff, indices.size() * BLOCK_MEMORY);  // NaN
    for (size_t rank = 0; rank < indices.size(); ++rank) {
        Block& block = emulated.blocks[rank];
        block.index = indices[rank];
        block.lanes = std::vector<Lane>(threads);
        block.warps = std::vector<Warp>(threads / 32);
        block.barrier = {threads, 0, 0};
        block.memory = shared_memories[rank];
        for (Warp& warp : block.warps) warp.barrier.expected = 32;
        for (int i = 0; i < threads; ++i) {
            Lane& lane = block.lanes[i];
            lane.index = {i, 0, 0};
            lane.block = &block;
            lane.stack = std::make_unique<unsigned char[]>(1 << 16);
            getcontext(&lane.context);
            lane.context.uc_stack.ss_sp = lane.stack.get();
            lane.context.uc_stack.ss_size = 1 << 16;
            makecontext(&lane.context, run_lane, 0);
        }
    }
    u64 progress = emulated.progress, idle_rounds = 0, random = 88172645463325252ull;
    for (bool is_running = true; is_running;) {
        is_running = false;
        for (Block& block : emulated.blocks)
            for (size_t warp = 0; warp < block.warps.size(); ++warp) {
                random ^= random << 13, random ^= random >> 7, random ^= random << 17;
                const bool has_turn = (random >> 40 & ((1 << warp % 4) - 1)) == 0;  // some warps are slow
                for (size_t i = warp * 32; i < warp * 32 + 32; ++i) {
                    Lane& lane = block.lanes[i];
                    if (lane.is_done) continue;
                    is_running = true;
                    if (!has_turn) continue;
                    emulated.current = &lane;
                    swapcontext(&emulated.scheduler, &lane.context);
                }
            }
        idle_rounds = emulated.progress == progress ? idle_rounds + 1 : 0;
        progress = emulated.progress;
        if (idle_rounds > 1000) return WAITING_FOR_ONE_ANOTHER;
    }
    if (overlaps && !emulated.waits_are_right) return WITHOUT_ONE_WAIT;
    for (size_t rank = 0; rank < indices.size(); ++rank)
        for (int place = shared_bytes; place < BLOCK_MEMORY; ++place)
            if (shared_memories[rank][place] != 0xff) return BEYOND_ITS_MEMORY;
    for (const Block& block : emulated.blocks)
        for (const auto& [address, barrier] : block.copy_barriers)
            for (int i = 0; i < 8; ++i)
                if (barrier.place[i] != 0xff) return OVER_A_BARRIER;
    return AS_IT_SHOULD;
}
