// LoRA of one projection for rows that decode, all adapters of a batch in one launch: y = B (A x), or y += B (A x).
//
// A block for each multiprocessor stays for the whole launch. Each of its warps keeps a few copies of weights under way in
// its part of shared memory, from its first weight of A to its last and then of B, so that the bus hardly pauses: this
// takes few registers and little shared memory, and so a block finds room beside a base product, which leaves a good part
// of the bus idle. Between the products all blocks meet.
//
// Compile-time: ADD (to y), MINB (blocks that a multiprocessor has room for at least), and those of the headers.
#include "lora_expand.cuh"
#include "lora_shrink.cuh"

#define RING_BYTES (A_STAGES * A_BYTES > B_STAGES * B_BYTES ? A_STAGES * A_BYTES : B_STAGES * B_BYTES)  // of a warp

extern "C" __global__ void __launch_bounds__(THREADS, MINB) lora(
    const u16* x, u16* y, float* parts, int* meeting_words, const u16* arena, const int* records, const int* table,
    int num_tiles, int record_start, int slot_stride, int x_stride, int y_stride, int part_stride, int in_features,
    int rank_stride, int end_0, int end_1, int end_2) {
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ __align__(16) union {
        ShrinkSums sums;
        HeldRows held[WARPS];
    } shared;
    allow_next_kernel();
    const Operands of{x, y, parts, arena, x_stride, y_stride, part_stride, in_features, rank_stride, {end_0, end_1, end_2}};
    Work of_a, of_b;
    load_tiles(
        memory + WARPS * RING_BYTES, table, records + record_start, slot_stride, num_tiles,
        [&](const Tile& tile) { return make_int2(shrink_units(of, tile), expand_stages(of, tile)); }, of_a, of_b);
    const int warp = threadIdx.x >> 5;
    const u32 ring = shared_address(memory) + warp * RING_BYTES;

    shrink(of, of_a, ring, shared.sums);
    const Meeting meeting(meeting_words);
    meeting.come();
    expand(of, of_b, ring, shared.held[warp], [&] { meeting.wait(); });
}
