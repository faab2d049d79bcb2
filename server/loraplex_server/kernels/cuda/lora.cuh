// How LoRA of a batch is dealt out to the blocks of a launch, and how they meet.
//
// Compile-time: WARPS (of a block), COLUMNS (of a unit of B: 64 or 128), PART (inputs of a unit of A), ADD.
#pragma once
#include "common.cuh"

#define THREADS (WARPS * 32)
#define RANKS 16  // of a fragment
#define ROWS 8    // of a fragment; a tile of more rows is two subs
#define MAX_MODULES 3
#define ALL_LANES 0xffffffffu

__device__ __forceinline__ int divide_up(int a, int b) { return (a + b - 1) / b; }

// a / b of a < 2^21 and b > 0, in a few instructions.
__device__ __forceinline__ int divide(int a, int b) { return __float2int_rd((a + 0.5f) * __frcp_rn(static_cast<float>(b))); }

// 16 bytes, or zeros.
__device__ __forceinline__ void copy_async_or_zero(u32 to, const u16* from, bool is_there) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(is_there ? 16 : 0)
                 : "memory");
}

struct Operands {
    const u16* x;
    u16* y;
    float* parts;  // [part, row, rank]: A x as sums over parts of the inputs
    const u16* arena;
    int x_stride, y_stride, part_stride, in_features, rank_stride;
    int ends[MAX_MODULES];  // of the modules' columns

    __device__ int num_parts() const { return divide_up(in_features, PART); }
    __device__ int start_of(int module) const { return module == 0 ? 0 : module == 1 ? ends[0] : ends[1]; }
    __device__ int width_of(int module) const {
        return (module == 0 ? ends[0] : module == 1 ? ends[1] : ends[2]) - start_of(module);
    }
};

// A row tile and its adapter's record.
struct Tile {
    int row, num_rows, pad[2];
    int a, total_rank, b[MAX_MODULES], ranks[MAX_MODULES];

    __device__ int num_subs() const { return divide_up(num_rows, ROWS); }
    __device__ int rows_of(int sub) const { return min(ROWS, num_rows - sub * ROWS); }
    __device__ int num_groups() const { return divide_up(total_rank, RANKS); }
    __device__ int rank_start(int module) const { return module == 0 ? 0 : module == 1 ? ranks[0] : ranks[0] + ranks[1]; }
};

static_assert(sizeof(Tile) == 48, "read as three times 16 bytes");

// Where the work of each tile ends: one of the two products of all tiles.
struct Work {
    const Tile* tiles;
    const int* ends;
    int num_tiles, total;

    // Where a piece of work lies; to be called by a whole warp. `rest`: its place within the tile.
    __device__ int tile_of(int place, int& rest) const {
        const int lane = threadIdx.x & 31;
        int tile = 0;
        for (int first = 0; first < num_tiles; first += 32) {
            const bool is_before = first + lane < num_tiles && ends[first + lane] <= place;
            const int count = __popc(__ballot_sync(ALL_LANES, is_before));
            tile += count;
            if (count < 32) break;
        }
        rest = place - (tile == 0 ? 0 : ends[tile - 1]);
        return tile;
    }

    // The next tile with work, or num_tiles.
    __device__ int after(int tile) const {
        const int end = ends[tile];
        do ++tile;
        while (tile < num_tiles && ends[tile] == end);
        return tile;
    }

    // What belongs to one of several who do it.
    __device__ void share(int index, int count, int& begin, int& end) const {
        begin = static_cast<int>(static_cast<long long>(total) * index / count);
        end = static_cast<int>(static_cast<long long>(total) * (index + 1) / count);
    }
};

// Reads tiles and records into shared memory: num_tiles times TILE_BYTES. To be called by the whole block.
#define TILE_BYTES 56

template <class WorkOf>
__device__ void load_tiles(unsigned char* memory, const int* table, const int* records, long long slot_stride, int num_tiles,
                           const WorkOf& work_of, Work& first, Work& second) {
    __shared__ int2 of_warps[WARPS];
    Tile* const tiles = reinterpret_cast<Tile*>(memory);
    int* const first_ends = reinterpret_cast<int*>(tiles + num_tiles);
    int* const second_ends = first_ends + num_tiles;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int2 total = make_int2(0, 0);
    for (int begin = 0; begin < num_tiles; begin += THREADS) {
        const int index = begin + threadIdx.x;
        int2 work = make_int2(0, 0);
        if (index < num_tiles) {
            const int4 rows = *reinterpret_cast<const int4*>(table + index * 4);
            int4 low = make_int4(0, 0, 0, 0), high = low;
            if (rows.y > 0 && rows.z >= 0) {
                const int4* const record = reinterpret_cast<const int4*>(records + rows.z * slot_stride);
                low = record[0], high = record[1];
            }
            int4* const to = reinterpret_cast<int4*>(tiles + index);
            to[0] = rows, to[1] = low, to[2] = high;
            work = work_of(tiles[index]);
        }
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            const int x = __shfl_up_sync(ALL_LANES, work.x, distance), y = __shfl_up_sync(ALL_LANES, work.y, distance);
            if (lane >= distance) work.x += x, work.y += y;
        }
        if (lane == 31) of_warps[warp] = work;
        __syncthreads();
        work.x += total.x, work.y += total.y;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
            if (w < warp) work.x += of_warps[w].x, work.y += of_warps[w].y;
            total.x += of_warps[w].x, total.y += of_warps[w].y;
        }
        if (index < num_tiles) first_ends[index] = work.x, second_ends[index] = work.y;
        __syncthreads();
    }
    first = {tiles, first_ends, num_tiles, total.x};
    second = {tiles, second_ends, num_tiles, total.y};
}

// All blocks of a launch come to one place, each of which must be running by then or have room to when others end.
// Two words: how many have come, and how often all have.
struct Meeting {
    int* words;
    int earlier;

    // When the previous launch has ended.
    __device__ explicit Meeting(int* words) : words(words), earlier(times()) {}

    __device__ int times() const {
        int v;
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(words + 1) : "memory");
        return v;
    }

    // By the whole block; what it has stored is there for all who wait.
    __device__ void come() const {
        __syncthreads();
        if (threadIdx.x != 0) return;
        __threadfence();
        if (atomicAdd(words, 1) != static_cast<int>(gridDim.x) - 1) return;
        words[0] = 0;
        __threadfence();
        atomicAdd(words + 1, 1);
    }

    // By a whole warp.
    __device__ void wait() const {
        if ((threadIdx.x & 31) == 0)
            while (times() == earlier) __nanosleep(20);
        __syncwarp();
    }
};
