// Stands in for kernels/cuda/tma.cuh: boxes of a matrix, rows of 128 bytes, swizzled, with zeros outside.
#pragma once
#include "common.cuh"

struct alignas(64) TensorMap {
    const unsigned char* address;
    u64 rows, columns, row_bytes, element_bytes, box_rows, pad[10];
};

static_assert(sizeof(TensorMap) == 128, "as the driver's");

// Where a byte of a row of 128 lies: 16-byte pieces change places within each 8 rows.
inline u32 swizzled(u32 address) { return address ^ (address >> 7 & 7) << 4; }

inline void prefetch_map(const TensorMap*) {}

inline void arrive_at(u32 barrier) {
    ++copy_barrier(barrier).come;
    copy_barrier(barrier).settle();
}

inline void copy_box(u32 to, const TensorMap* map, int column, int row, u32 barrier) {
    Copy copy{shared_place(to, 1024), std::vector<unsigned char>(map->box_rows * 128)};
    for (u32 r = 0; r < map->box_rows; ++r)
        for (u32 byte = 0; byte < 128; ++byte) {
            const u64 from = static_cast<u64>(column) * map->element_bytes + byte;
            if (row + r < map->rows && from < map->columns * map->element_bytes)
                copy.bytes[swizzled(r * 128 + byte)] = map->address[(row + r) * map->row_bytes + from];
        }
    copy_to_barrier(std::move(copy), barrier);
}
