// Rows beyond the 8 · NT of a block are those of further blocks: one of the same outputs for each group of rows, next to
// each other in the grid, so that they run at the same time and find the weight in L2.
#pragma once

struct RowGroup {
    int column;  // of blocks with the same outputs
    int first_row;
};

__device__ __forceinline__ RowGroup row_group(int m) {
    const int groups = (m + 8 * NT - 1) / (8 * NT), block = static_cast<int>(blockIdx.x);
    return {block / groups, block % groups * (8 * NT)};
}
