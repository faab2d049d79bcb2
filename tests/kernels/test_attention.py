"""Paged attention: decode and prefill kernels against the plain-torch reference, with everything unused poisoned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from loraplex_server.kernels import decode_attention as decode_module
from loraplex_server.kernels.decode_attention import PART_TOKENS, decode_attention, num_parts
from loraplex_server.kernels.paged_attention import AttentionShape, paged_attention
from loraplex_server.kernels.prefill_attention import plan_query_tiles, prefill_attention, query_tile_table
from loraplex_server.model.batch import DecodeRows, PrefillChunk

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
SHAPES = {
    "grouped": AttentionShape(4, 2, 16, None),
    "three to one": AttentionShape(9, 3, 64, None),
    "one to one, window": AttentionShape(2, 2, 32, 37),
}


class Pages:
    """Contexts of random keys and values on shuffled blocks; NaN in every position that belongs to none."""

    def __init__(
        self,
        lengths: list[int],
        shape: AttentionShape,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        width = -(-max(lengths) // block_size) + 1
        order = torch.randperm(width * len(lengths)) + 1
        self.tables = order.view(len(lengths), width)
        features = 2 * shape.num_kv_heads * shape.head_dim
        self.cache = torch.full((order.numel() + 1, block_size, features), torch.nan)
        for table, length in zip(self.tables, lengths, strict=True):
            slots = [int(table[p // block_size]) * block_size + p % block_size for p in range(length)]
            self.cache.view(-1, features)[slots] = torch.randn(length, features)
            table[-(-length // block_size) :] = 1 << 30  # read, it would fault
        self.cache = self.cache.to(dtype).to(device)

    def readable(self) -> tuple[Tensor, Tensor]:
        """(cache, tables) for the reference, which reads all blocks that a table names."""
        return self.cache.cpu().float(), self.tables.clamp(max=self.cache.shape[0] - 1)


def relative_error(out: Tensor, reference: Tensor) -> float:
    return float((out.cpu().double() - reference.double()).norm() / reference.double().norm())


def decode(pages: Pages, queries: Tensor, lengths: Tensor, max_context: int, shape: AttentionShape) -> Tensor:
    count, device = queries.shape[0], queries.device
    parts = num_parts(max_context)
    states = count * shape.num_heads * parts
    out = torch.full((count, shape.num_heads * shape.head_dim), torch.nan, dtype=queries.dtype, device=device)
    part_out = torch.full((states * shape.head_dim,), torch.nan, device=device)
    part_state = torch.full((states * 2,), torch.nan, device=device)
    width = -(-max_context // pages.cache.shape[1])
    tables = torch.nn.functional.pad(pages.tables, (0, max(0, width - pages.tables.shape[1])), value=1 << 30)
    tables = tables.to(torch.int32).to(device)
    decode_attention(
        queries, pages.cache, tables, lengths.to(device), max_context, out, part_out, part_state, shape
    )
    return out


def check_decode(
    lengths: list[int], max_context: int, shape: AttentionShape, dtype: torch.dtype, device: torch.device
) -> None:
    pages = Pages(lengths, shape, 16, dtype, device)
    # As the engine passes them: a view of the packed projection's output.
    packed = torch.randn(len(lengths), (shape.num_heads + 2) * shape.head_dim).to(dtype).to(device)
    queries = packed[:, : shape.num_heads * shape.head_dim].view(len(lengths), shape.num_heads, -1)
    context_lengths = torch.tensor(lengths, dtype=torch.int32)
    cache, tables = pages.readable()
    rows = DecodeRows(len(lengths), tables, context_lengths, max(lengths))
    expected = paged_attention(queries.cpu().float(), cache, rows, [], shape)

    out = decode(pages, queries, context_lengths, max_context, shape)

    assert relative_error(out, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("max_context", [PART_TOKENS, 2 * PART_TOKENS + 1])
def test_decode_matches_the_reference(shape: AttentionShape, max_context: int, device: torch.device) -> None:
    lengths = (
        [1, 64, 65, 200] if max_context == PART_TOKENS else [3, PART_TOKENS, PART_TOKENS + 9, max_context]
    )
    check_decode(lengths, max_context, shape, torch.bfloat16, device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_decode_matches_the_reference_in_other_dtypes(dtype: torch.dtype, device: torch.device) -> None:
    check_decode([5, 300], 512, SHAPES["grouped"], dtype, device)


def test_decode_of_a_row_is_the_same_under_a_larger_bound_and_beside_others(device: torch.device) -> None:
    shape = SHAPES["grouped"]
    pages = Pages([100, 700], shape, 16, torch.bfloat16, device)
    queries = torch.randn(2, 4, 16).bfloat16().to(device)
    lengths = torch.tensor([100, 700], dtype=torch.int32)

    together = decode(pages, queries, lengths, 1024, shape)
    alone = decode(pages, queries[:1], lengths[:1], 128, shape)

    assert torch.equal(together[:1], alone)


@pytest.mark.parametrize("shape", [SHAPES["grouped"], SHAPES["one to one, window"]])
def test_parts_that_programs_share_out_give_what_a_program_for_each_gives(
    shape: AttentionShape, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [1, PART_TOKENS, 3 * PART_TOKENS + 5, 0]
    pages = Pages([max(length, 1) for length in lengths], shape, 16, torch.bfloat16, device)
    queries = torch.randn(len(lengths), shape.num_heads, shape.head_dim).bfloat16().to(device)
    context_lengths = torch.tensor(lengths, dtype=torch.int32)

    for_each = decode(pages, queries, context_lengths, 4 * PART_TOKENS, shape)
    monkeypatch.setattr(decode_module, "_LEAST_PROGRAMS", 1)
    for programs in (1, 2 * len(lengths) * shape.num_kv_heads):
        monkeypatch.setattr(decode_module, "_PROGRAMS", programs)
        shared_out = decode(pages, queries, context_lengths, 4 * PART_TOKENS, shape)
        assert torch.equal(shared_out, for_each)
    assert for_each.isfinite().all()


def test_a_padding_row_without_context_gets_zeros(device: torch.device) -> None:
    shape = SHAPES["grouped"]
    pages = Pages([20, 1], shape, 16, torch.bfloat16, device)
    queries = torch.randn(2, 4, 16).bfloat16().to(device)

    for max_context in (64, 600):
        out = decode(pages, queries, torch.tensor([20, 0], dtype=torch.int32), max_context, shape)
        assert out[0].isfinite().all()
        assert out[1].eq(0).all()


def check_prefill(
    chunks: list[tuple[int, int]], shape: AttentionShape, dtype: torch.dtype, device: torch.device
) -> None:
    """Chunks are (position of the first row, rows); two rows that belong to none stand before them."""
    lengths = [position + rows for position, rows in chunks]
    pages = Pages(lengths, shape, 16, dtype, device)
    cache, tables = pages.readable()
    row, prefills, plan = 2, [], []
    for index, (position, rows) in enumerate(chunks):
        blocks = tables[index, : -(-lengths[index] // 16)]
        prefills.append(PrefillChunk(row, row + rows, position, blocks))
        plan.append((row, rows, position, index))
        row += rows
    queries = torch.randn(row, shape.num_heads, shape.head_dim).to(dtype).to(device)
    nothing = DecodeRows(0, tables, torch.tensor([]), 0)
    expected = paged_attention(queries.cpu().float(), cache, nothing, prefills, shape)[2:]
    tiles = plan_query_tiles(plan)
    out = torch.full((row, shape.num_heads * shape.head_dim), torch.nan, dtype=dtype, device=device)

    table = query_tile_table(tiles, len(tiles) + 1).to(device)
    prefill_attention(queries, pages.cache, pages.tables.to(device), table, out, shape)

    assert relative_error(out[2:], expected) < TOLERANCE[dtype]
    assert out[:2].isnan().all()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_prefill_matches_the_reference(shape: AttentionShape, device: torch.device) -> None:
    check_prefill([(0, 70), (63, 2), (130, 65), (0, 1)], shape, torch.bfloat16, device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_prefill_matches_the_reference_in_other_dtypes(dtype: torch.dtype, device: torch.device) -> None:
    check_prefill([(17, 80)], SHAPES["grouped"], dtype, device)


LLAMA_8B = AttentionShape(32, 8, 128, None)
MISTRAL_WINDOW = AttentionShape(32, 8, 128, 300)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [LLAMA_8B, MISTRAL_WINDOW, SHAPES["three to one"]])
@pytest.mark.parametrize("max_context", [256, 2048, 9000])
def test_decode_at_real_shapes_matches_the_reference(
    shape: AttentionShape, max_context: int, device: torch.device
) -> None:
    lengths = [max_context, 1, max_context // 2, *torch.randint(1, max_context, (5,)).tolist()]
    check_decode(lengths, max_context, shape, torch.bfloat16, device)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [LLAMA_8B, MISTRAL_WINDOW, SHAPES["three to one"]])
def test_prefill_at_real_shapes_matches_the_reference(shape: AttentionShape, device: torch.device) -> None:
    check_prefill([(0, 1000), (513, 130), (2000, 1), (77, 700)], shape, torch.bfloat16, device)
